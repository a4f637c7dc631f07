from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from mmprune3d.cli import main
from mmprune3d.engine.halting import listening
from mmprune3d.inspect.halting import HaltingStatistics, corners_from_above, found_boxes, run_halting, training_curves
from tests.test_engine.test_halting_hook import (
    RANGE,
    VOXEL,
    StandInHalting,
    batch_boxes,
    batch_record,
    config,
    random_boxes,
    random_record,
    slowly_inside,
)

RULES = ((0.5, (0.2, 0.6)), (0.5, (0.5, 0.9)))


def statistics(*batches: list[int], rings: tuple[float, ...] = (4.0, 9.0)) -> HaltingStatistics:
    found = HaltingStatistics(VOXEL, RANGE, rings)
    for batch in batches:
        found.add(batch_record(batch, RULES), batch_boxes(batch))
    return found


def test_shares_are_those_of_a_slow_count() -> None:
    batches = ([4, 5], [0], [7])
    found = statistics(*batches)
    rows: list[tuple[bool, float, int]] = []
    for batch in batches:
        record = batch_record(batch, RULES)
        inside = slowly_inside(record.coords, batch_boxes(batch))
        for token, layer, (_, _, row, column) in zip(inside, record.halted_at().tolist(), record.coords.tolist()):
            x, y = (column + 0.5) * VOXEL[0] + RANGE[0], (row + 0.5) * VOXEL[1] + RANGE[1]
            rows.append((token, (x * x + y * y) ** 0.5, layer))
    assert found.samples == 4
    for ring, (near, far) in enumerate(((0, 4), (4, 9), (9, 99))):
        for kind, wanted in (('foreground', True), ('background', False)):
            layers = [layer for token, distance, layer in rows if token is wanted and near <= distance < far]
            tokens, live = found.counts(ring, kind)
            assert tokens == len(layers)
            assert live.tolist() == [sum(layer > which for layer in layers) for which in range(4)]
    assert found.counts()[0] == len(rows)
    assert found.counts(1)[0] == sum(found.counts(1, kind)[0] for kind in ('foreground', 'background'))
    alone = batch_record([0], RULES)
    assert statistics([0]).sparsity().float().tolist() == pytest.approx(alone.sparsity().tolist())


def test_the_table_names_rings_and_leaves_gaps() -> None:
    found = HaltingStatistics(VOXEL, RANGE, (30.0, 50.0))
    record = random_record((40,))
    found.add(record, [torch.zeros(0, 7)])
    lines = found.markdown().splitlines()
    assert lines[0] == '| halted tokens (%) | tokens per sample | layer 0 | layer 1 | layer 2 | layer 3 | mean |'
    assert all(line.count('|') == 8 for line in lines)
    rows = {line.split(' | ')[0].strip('| '): line.strip('| ').split(' | ')[1:] for line in lines[2:]}
    assert len(rows) == 12
    shares = [f'{100 * share:.1f}' for share in [*record.sparsity().tolist(), record.mean_sparsity()]]
    assert rows['all'] == rows['background 0 to 30 m'] == ['40.0', *shares]
    assert rows['foreground'] == rows['all beyond 50 m'] == ['0.0', '-', '-', '-', '-', '-']
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain['rows']['foreground'] == {'tokens_per_sample': 0, 'sparsity': None}
    assert list(found.curves()) == ['background']


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r'rings=\[50, 30\] must be distances in metres above 0 that ascend'):
        HaltingStatistics(VOXEL, RANGE, [50, 30])
    found = HaltingStatistics(VOXEL, RANGE)
    with pytest.raises(ValueError, match='no record was added'):
        found.markdown()
    with pytest.raises(ValueError, match='the samples of the data set have none'):
        found.add(random_record((5,)), None)
    found.add(random_record((5,)), random_boxes(1))
    with pytest.raises(ValueError, match='a record of 6 layers after records of 4'):
        found.add(random_record((5,), num_layers=6), random_boxes(1))


def test_listening_ends_with_the_block() -> None:
    detector, seen = StandInHalting([dict(block=0)]), []
    with pytest.raises(KeyError), listening(detector, lambda *args: seen.append(args)):
        detector([0], mode='predict')
        raise KeyError
    detector([0], mode='predict')
    assert len(seen) == 1 and detector.record_listeners == []


def test_boxes_that_were_found() -> None:
    boxes = random_boxes(1)[0]
    boxes[0] = torch.tensor([2.0, 1, 0, 4, 2, 1, 0])
    scores, labels = torch.tensor([0.9, 0.2, 0.3]), torch.tensor([1, 1, 0])
    instances = SimpleNamespace(bboxes_3d=SimpleNamespace(tensor=boxes), scores_3d=scores, labels_3d=labels)
    found = found_boxes(SimpleNamespace(pred_instances_3d=instances), ['car', 'bus', 'bicycle'], 0.3)
    assert {name: len(corners) for name, corners in found.items()} == {'car': 1, 'bus': 1, 'bicycle': 0}
    assert found['bus'].tolist() == [[[4, 2], [0, 2], [0, 0], [4, 0]]]
    assert (found['car'] == corners_from_above(boxes[2:])).all()


# the command


@MODELS.register_module()
class StandInWithBoxes(StandInHalting):
    """Finds one box of class 0 in every sample."""

    def forward(self, inputs: list[int], data_samples: list | None = None, mode: str = 'tensor') -> Any:
        super().forward(inputs, data_samples, mode)
        instances = SimpleNamespace(
            bboxes_3d=SimpleNamespace(tensor=random_boxes(1)[0][:1]),
            scores_3d=torch.tensor([0.5]),
            labels_3d=torch.tensor([0]),
        )
        return [SimpleNamespace(pred_instances_3d=instances)] * len(inputs)


def files(tmp_path: Path) -> tuple[Path, Path]:
    """A config and a checkpoint."""
    import tests.toy_runner  # noqa: F401

    settings = config(tmp_path, custom_hooks=[])
    settings.model.type = 'StandInWithBoxes'
    settings.dump(str(tmp_path / 'small.py'))
    torch.save(MODELS.build(settings.model).state_dict(), tmp_path / 'small.pth')
    return tmp_path / 'small.py', tmp_path / 'small.pth'


def test_pictures_and_table_of_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'out'
    log = tmp_path / 'scalars.json'
    log.write_text(json.dumps({'iter': 2, 'halting/mean_foreground': 0.5, 'halting/mean_background': 0.7}) + '\n')
    command = ['inspect', 'halting', *map(str, files(tmp_path)), '--draw', '0', '2', '--out', str(out)]
    assert main([*command, '--log', f'ours={log}']) == 0
    pictures = {'halting_0.png', 'halting_2.png', 'layers.png', 'training.png'}
    assert {path.name for path in out.iterdir()} == pictures | {'report.json', 'report.md', 'logs'}
    text = (out / 'report.md').read_text()
    wanted = statistics([0], [2], rings=(30.0, 50.0))
    assert wanted.markdown() in text and 'Over 2 samples' in text
    assert capsys.readouterr().out.strip().endswith(text.strip())
    report = json.loads((out / 'report.json').read_text())
    assert report['rows'] == wanted.to_dict()['rows'] and report['env']['batch'] == 1


def test_the_table_may_be_of_more_samples_than_are_drawn(tmp_path: Path) -> None:
    config_file, checkpoint = files(tmp_path)
    text = run_halting(config_file, checkpoint, [1], tmp_path / 'out', {}, counted=2)
    assert statistics([0], [2], rings=(30.0, 50.0)).markdown() in text
    assert [path.name for path in (tmp_path / 'out').glob('halting_*')] == ['halting_1.png']


def test_what_cannot_be_shown_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pair, out = files(tmp_path), tmp_path / 'out'
    with pytest.raises(ValueError, match=r'samples \[3, -1\] cannot be shown; valid are 0 to 2'):
        run_halting(*pair, [0, 3, -1], out, {})
    with pytest.raises(ValueError, match='did not call its record_listeners'):
        run_halting(*pair, [0], out, {'model.silent': True})
    with pytest.raises(ValueError, match='the model halts no tokens'):
        run_halting(*pair, [0], out, {'model.gates': []})
    with pytest.raises(SystemExit, match='2'):
        main(['inspect', 'halting', *map(str, pair)])
    with pytest.raises(SystemExit, match='2'):
        main(['inspect', 'halting', *map(str, pair), '--draw', '0', '--log', 'scalars.json'])
    said = capsys.readouterr().err
    assert 'nothing to do: give --samples, --draw or both' in said and 'cannot read --log scalars.json' in said
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'error: none.py does not exist'):
        main(['inspect', 'halting', 'none.py', 'none.pth', '--draw', '0'])


def test_curves_of_a_training_are_without_its_validations(tmp_path: Path) -> None:
    log = tmp_path / 'scalars.json'
    lines = [
        {'iter': 2, 'step': 2, 'halting/mean_foreground': 0.5, 'halting/mean_background': 0.7, 'loss': 1.0},
        {'step': 1, 'halting/mean_foreground': 0.1, 'halting/mean_background': 0.1, 'score': 1.0},
        {'iter': 4, 'step': 4, 'halting/mean_foreground': 0.4, 'halting/mean_background': 0.8, 'halting/gate0': 0.1},
    ]
    log.write_text('\n'.join(map(json.dumps, lines)) + '\n{"iter": 6, "halti')
    assert training_curves(log) == {'foreground': [(2, 0.5), (4, 0.4)], 'background': [(2, 0.7), (4, 0.8)]}
    with pytest.raises(ValueError, match=r'no halting/gate0_foreground .* there is halting/gate0, halting/mean_b'):
        training_curves(log, gate=0)
    with pytest.raises(FileNotFoundError):
        training_curves(tmp_path / 'none.json')
