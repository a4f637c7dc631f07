from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from mmprune3d.adapters.learned_queries import learned_queries
from mmprune3d.inspect.gpq import Candidate, count_selections, run_analysis
from mmprune3d.measure.runners import loaded_runner, prepare, read_config
from tests.conftest import CONFIG

from .test_query_history import line

ROOT = Path(__file__).parents[2]
REMOVED = [7, 0, 299, 150]
THRESHOLD = 0.2


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The trained petr_tiny, since random queries are all alike, and the same without some of its queries."""
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(Config.fromfile(CONFIG).model)
    whole, pruned = CONFIG.with_suffix('.pth'), tmp_path_factory.mktemp('checkpoint') / 'pruned.pth'
    model.load_state_dict(torch.load(whole, weights_only=True)['state_dict'])
    model.pts_bbox_head.reference_points.remove(torch.tensor(REMOVED))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, pruned)
    return [whole, pruned]


@pytest.fixture(scope='module')
def result(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], checkpoints: list[Path]) -> Path:
    out = tmp_path_factory.mktemp('queries')
    history = out / 'gpq_history.jsonl'
    history.write_text(line(10, [2], {0: -1.0, 1: -3.0, 2: -9.0}) + line(20, [1], {0: -1.5, 1: -8.0}))
    models = [Candidate(name, CONFIG, path) for name, path in zip(('whole', 'pruned'), checkpoints, strict=True)]
    text = run_analysis(models, out, history, 2, THRESHOLD, overrides)
    assert text == (out / 'queries.md').read_text()
    return out


def slow_count(logits: Tensor, ids: list[int], limit: int) -> dict[int, list[int]]:
    """Id -> [results, confident ones] of one sample, counted by sorting all pairs in Python."""
    scores = logits.sigmoid().tolist()
    pairs = sorted(((scores[q][c], -q, -c) for q, c in product(range(len(ids)), range(logits.shape[1]))), reverse=True)
    found = {id_: [0, 0] for id_ in ids}
    for score, q, _ in pairs[:limit]:
        found[ids[-q]][0] += 1
        found[ids[-q]][1] += score >= THRESHOLD
    return found


def slow_counts(config: Config, samples: list[int]) -> dict[int, list[int]]:
    """Of several samples, one after the other."""
    runner = loaded_runner(config)
    queries, collate = learned_queries(runner.model), runner.test_dataloader.collate_fn
    heard: list[Tensor] = []
    queries.head.register_forward_hook(lambda head, inputs, outputs: heard.append(outputs['all_cls_scores'][-1][0]))
    ids = queries.embedding.kept.tolist()
    total = {id_: [0, 0] for id_ in ids}
    for index in samples:
        with torch.no_grad():
            runner.model.test_step(collate([runner.test_dataloader.dataset[index]]))
        for id_, numbers in slow_count(heard[-1].float(), ids, 300).items():
            total[id_] = [a + b for a, b in zip(total[id_], numbers)]
    return total


@pytest.mark.parametrize('model', [0, 1])
def test_frequencies_are_those_of_an_obvious_count(
    result: Path,
    tmp_path: Path,
    overrides: dict[str, Any],
    checkpoints: list[Path],
    model: int,
) -> None:
    checkpoint = checkpoints[model]
    expected = slow_counts(prepare(read_config(CONFIG, checkpoint, overrides), checkpoint, tmp_path), [0, 2])
    data = json.loads((result / 'queries.json').read_text())['models'][model]
    assert data['kept'] == list(expected) == [id_ for id_ in range(300) if not (model and id_ in REMOVED)]
    assert data['counts']['results'] == [results for results, _ in expected.values()]
    assert data['counts']['confident'] == [confident for _, confident in expected.values()]
    assert sum(data['counts']['results']) == 2 * 300 > sum(data['counts']['confident']) > 0
    assert data['samples'] == 2 and data['results_per_sample'] == 300


def test_report_has_all_figures_as_plain_types(result: Path) -> None:
    data = json.loads((result / 'queries.json').read_text())
    whole, pruned = data['models']
    assert whole['removed'] == 0 and pruned['removed'] == 4 and pruned['queries'] == 296
    assert [pruned['removal_rank'][id_] for id_ in REMOVED] == [1, 2, 3, 4]
    assert whole['points_m'] == pruned['points_m'] and len(whole['points_m']) == 300
    assert pruned['spread'] != whole['spread'] and whole['spread']['clark_evans'] > 0
    assert data['history']['removals'][1] == {'iter': 20, 'removed': [1], 'threshold': -8.0}
    assert {'device', 'dtype', 'threads', 'torch'} <= set(whole['env'])
    rows = [row.split(' | ') for row in (result / 'queries.md').read_text().splitlines() if row.startswith('| ')]
    assert rows[0] == ['|', 'whole', 'pruned |'] and rows[1] == ['| queries', '300', '296 |']
    assert all(len(row) == 3 for row in rows)


@pytest.mark.parametrize('name', ['frequency.png', 'points.png', 'trajectories.png'])
def test_pictures_are_drawn(result: Path, name: str) -> None:
    image = cv2.imread(str(result / name))
    assert min(image.shape[:2]) > 400
    assert 0.02 < (image < 250).any(-1).mean() < 0.5


def test_a_head_that_never_runs_is_an_error(
    overrides: dict[str, Any], petr_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = loaded_runner(prepare(read_config(CONFIG, petr_checkpoint, overrides), petr_checkpoint, tmp_path))
    monkeypatch.setattr(runner.model, 'test_step', lambda batch: None)
    with pytest.raises(ValueError, match='the head saw 0 samples of 1'):
        count_selections(runner, learned_queries(runner.model), 1, THRESHOLD)


@pytest.mark.parametrize('text', ['', 'name', 'name=a.py', 'a.py:b.pth', '=a.py:b.pth', 'name=:b.pth', 'name=a.py:'])
def test_malformed_comparisons_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='valid is NAME=CONFIG:CHECKPOINT'):
        Candidate.parse(text)
    assert Candidate.parse('a=b.py:c/d.pth') == Candidate('a', Path('b.py'), 'c/d.pth')


def test_what_cannot_work_is_refused_before_a_model_runs(
    tmp_path: Path, overrides: dict[str, Any], petr_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmprune3d.inspect.gpq.look_at', None)
    model = Candidate('a', CONFIG, petr_checkpoint)
    missing = Candidate('b', CONFIG, tmp_path / 'none.pth')
    with pytest.raises(ValueError, match='every model needs a name of its own, found a, a'):
        run_analysis([model, model], tmp_path, None, 1, 0.1, overrides)
    with pytest.raises(ValueError, match='threshold 2 must lie from 0 to 1'):
        run_analysis([model], tmp_path, None, 1, 2, overrides)
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        run_analysis([model, missing], tmp_path, None, 1, 0.1, overrides)
    with pytest.raises(FileNotFoundError, match=r'none\.jsonl does not exist'):
        run_analysis([model], tmp_path, tmp_path / 'none.jsonl', 1, 0.1, overrides)


def test_the_tool_says_what_is_wrong(petr_checkpoint: Path) -> None:
    command = ['-m', 'mmprune3d', 'inspect', 'queries', str(CONFIG), str(petr_checkpoint), '--compare', 'x']
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "error: cannot read --compare 'x'; valid is NAME=CONFIG:CHECKPOINT" in done.stderr
