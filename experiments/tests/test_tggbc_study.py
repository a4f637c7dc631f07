from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
import torch

from experiments.tggbc import study as key_study
from experiments.tggbc.chance import RandomPlan
from experiments.tggbc.parts import PARTS, Decoder, choose_parts
from experiments.tggbc.study import run_study
from mmprune3d.layers.attention import AttentionRecord, Keys
from mmprune3d.layers.key_pruning import make_pruner
from mmprune3d.measure.replayed_tests import CachedTest
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.pruning.tome import ToMePlan
from tests.conftest import CONFIG


@pytest.fixture(scope='module')
def study(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], petr_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp('study') / 'out'
    run_study(CONFIG, petr_checkpoint, out, 2, 'r', overrides)
    return out


def test_study_writes_table_figures_and_plot(study: Path) -> None:
    data = json.loads((study / 'study.json').read_text())
    assert data['settings'][0]['plan'] is None and data['settings'][0]['keys'] == [240] * 6
    assert [setting['plan']['r'] for setting in data['settings'][1:]] == [60, 120, 168, 210, 228]
    assert all({'mAP', 'NDS', 'keys'} < set(setting) for setting in data['settings'])
    assert {'device', 'dtype', 'threads', 'torch'} <= set(data['env'])
    table, attention = (study / 'study.md').read_text().split('## Do later layers')
    assert [line for line in attention.splitlines() if line.startswith('| 5 |')]
    rows = [line for line in table.splitlines() if line.startswith('| ')]
    assert rows[1].startswith('| baseline | -') and len(rows) == 2 + 5
    assert rows[2].startswith('| tgGBC | 60 (25.0 %) | 2 | 175 | max |')
    assert cv2.imread(str(study / 'r.png')).shape[1] > 1000
    assert not list(study.glob('features-*'))


def test_settings_that_are_not_possible_are_listed_and_not_run(
    overrides: dict[str, Any], petr_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        keys, indices, baseline = [240] * 6, range(3), {'mAP': 0.5, 'NDS': 0.4}
        replay, model = SimpleNamespace(batch_size=1), torch.nn.Linear(1, 1)

        def __init__(self, *_: object, **__: object) -> None:
            self.close = lambda: None

        def evaluate(self, plan: KeyPlan) -> dict[str, float]:
            plan.removals(6, 240)
            return {'mAP': 0.45, 'NDS': 0.35}

        @contextmanager
        def calls(self, samples: int) -> Iterator[tuple[()]]:
            yield ()

    monkeypatch.setattr(key_study, 'CachedTest', Fake)
    monkeypatch.setattr(key_study.Runner, 'from_cfg', lambda config: None)
    table = run_study(CONFIG, petr_checkpoint, tmp_path, None, 'tome', overrides)
    settings = json.loads((tmp_path / 'study.json').read_text())['settings']
    impossible = [setting['plan'] for setting in settings if 'impossible' in setting]
    assert [(plan['method'], plan['r'], plan['n']) for plan in impossible] == [
        ('tome', 144, 1),
        ('tome', 168, 1),
        ('tome', 168, 2),
    ]
    assert '- ToMe: cannot merge 144 of 240 keys in one layer; at most 120' in table
    assert '| ToMe | 60 (25.0 %) | 1 | - | - | 0.4500 | 0.3500 | -5.00 | -5.00 |' in table
    assert (tmp_path / 'tome.png').is_file()


def test_settings_that_find_nothing_or_nan_do_not_end_the_study(
    overrides: dict[str, Any], petr_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CachedTest.evaluate

    def evaluate(test: CachedTest, plan: KeyPlan) -> dict[str, float]:
        coder = test.model.pts_bbox_head.bbox_coder
        nowhere = torch.tensor([900.0, 900, 900, 901, 901, 901])
        scores = float('nan') if plan.r == 120 else 1.0
        predict = test.model.predict

        def poisoned(*args: object, **settings: object) -> list:
            found = predict(*args, **settings)
            for sample in found:
                sample.pred_instances_3d.scores_3d = sample.pred_instances_3d.scores_3d * scores
            return found

        with monkeypatch.context() as patched:
            if plan.r == 60:
                patched.setattr(coder, 'post_center_range', nowhere)
            patched.setattr(test.model, 'predict', poisoned)
            return real(test, plan)

    monkeypatch.setattr(CachedTest, 'evaluate', evaluate)
    table = run_study(CONFIG, petr_checkpoint, tmp_path, 2, 'r', overrides)
    nothing, nan, *others = json.loads((tmp_path / 'study.json').read_text())['settings'][1:]
    assert nothing['mAP'] == nothing['NDS'] == 0 and nothing['mATE'] == 1
    assert 'predicts NaN' in nan['impossible'] and 'mAP' not in nan
    assert len(others) == 3 and all('mAP' in other for other in others)
    assert '- the detector predicts NaN' in table


def test_a_study_file_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / 'study.json').write_text('{"source": {')
    with pytest.raises(ValueError, match=r'study.json is not a complete JSON file .* remove it'):
        key_study.Record(tmp_path / 'study.json', {})


def test_finished_settings_are_not_run_again(
    study: Path, overrides: dict[str, Any], petr_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_study, 'CachedTest', None)
    before = (study / 'study.md').read_text()
    assert run_study(CONFIG, petr_checkpoint, study, 2, 'r', overrides) == before


def test_figures_of_another_study_are_not_mixed_in(
    study: Path, overrides: dict[str, Any], petr_checkpoint: Path
) -> None:
    with pytest.raises(ValueError, match='another samples: choose another --out'):
        run_study(CONFIG, petr_checkpoint, study, 3, 'r', overrides)


def test_parts_fit_the_papers_tables() -> None:
    parts = {name: part(Decoder(num_keys=1000, num_layers=6)) for name, part in PARTS.items()}
    assert [plan.r for plan in parts['r'].plans] == [250, 500, 700, 875, 950]
    assert [(plan.r, plan.n) for plan in parts['n'].plans] == [(r, n) for r in (700, 875) for n in (1, 2, 3, 4, 5)]
    assert [plan.k for plan in parts['k'].plans] == [30, 60, 100, 175, 0]
    assert {(plan.score, plan.n, plan.k) for plan in parts['score'].plans} == {
        (score, n, 0 if score == 'none' else 175) for score in ('max', 'mean', 'min', 'none') for n in (1, 2)
    }
    assert {type(plan) for plan in parts['tome'].plans} == {TgGBCPlan, ToMePlan}
    assert {plan.seed for plan in parts['random'].plans if isinstance(plan, RandomPlan)} == {0, 1, 2}
    assert [plan.n for plan in PARTS['n'](Decoder(1000, 3)).plans] == [1, 2, 1, 2]


@pytest.mark.parametrize('text', ['r,x', ''])
def test_unknown_parts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='valid are r, n, k, score, tome, random'):
        choose_parts(text)


def kept_by_chance(seed: int, padding: torch.Tensor | None = None) -> torch.Tensor:
    pruner = make_pruner(RandomPlan(r=30, n=1, seed=seed), num_layers=3, record=True)
    tokens = torch.zeros(2, 50, 8)
    record = AttentionRecord(torch.zeros(2, 1, 4, 8), tokens[:, None])
    pruner(0, torch.zeros(2, 4, 8), Keys(tokens, tokens, padding), record, score_fn=None)
    return pruner.kept[-1].sort().values


def test_random_removal_is_repeatable_and_depends_on_the_seed() -> None:
    kept = kept_by_chance(0)
    assert kept.shape == (2, 20)
    assert torch.equal(kept, kept_by_chance(0)) and not torch.equal(kept, kept_by_chance(1))
    assert not torch.equal(kept[0], kept[1])


def test_random_removal_takes_padding_first() -> None:
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[:, 25:] = True
    assert kept_by_chance(0, padding).max() < 25
