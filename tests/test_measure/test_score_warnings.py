"""Warnings where nuScenes would judge by an accident: from tensors, from a test loop, in the report of an upgrade."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mmprune3d.measure import report as reports
from mmprune3d.measure.score_warnings import Detections, DetectionsHook, collected, score_warnings
from mmprune3d.pruning.tggbc import TgGBCPlan
from mmprune3d.upgrade.compare import KeyComparison
from mmprune3d.upgrade.run import run_upgrade
from tests import toy_runner
from tests.conftest import CONFIG
from tests.test_evaluation.nuscenes_boxes import box, evaluate_class

NAN = float('nan')


def some(number: int = 500, dtype: torch.dtype = torch.float32, classes: int = 3) -> Detections:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(number, generator=generator).to(dtype)
    return Detections(scores, torch.arange(number) % classes, torch.zeros(number, 2))


def test_different_scores_and_known_velocities_need_no_warning() -> None:
    assert score_warnings({'baseline': some(), 'upgraded': some(17)}) == []
    assert score_warnings({'baseline': Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long))}) == []


@pytest.mark.parametrize('nuscenes', [True, False])
def test_a_model_that_finds_nothing_is_named(nuscenes: bool) -> None:
    hook = DetectionsHook()
    empty = InstanceData(scores_3d=torch.zeros(0), labels_3d=torch.zeros(0, dtype=torch.long))
    hook.after_test_iter(None, 0, outputs=[SimpleNamespace(pred_instances_3d=empty)] * 3)
    (warning,) = score_warnings({'baseline': some(), 'upgraded': hook.detections()}, nuscenes)
    assert warning.startswith('upgraded: nothing was found in any of 3 samples')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_rounded_scores(dtype: torch.dtype) -> None:
    rounded = some(5000, dtype)
    (warning,) = score_warnings({'baseline': some(5000), 'upgraded': rounded})
    counts = Counter((int(label), float(score)) for label, score in zip(rounded.labels, rounded.scores))
    tied = sum(count for count in counts.values() if count > 1)
    assert warning.startswith(f'upgraded: {tied} of 5000 detections ({tied / 5000:.1%}) have the score of another')
    assert tied > 1500


def test_saturated_scores_are_named() -> None:
    found = some(100)
    found.scores[:40] = torch.tensor([20.0]).bfloat16().sigmoid().float()
    (warning,) = score_warnings({'upgraded': found})
    assert '40 of 100 detections (40.0%)' in warning and 'most often 1 (40 times)' in warning


@pytest.mark.parametrize(
    ('dtype', 'logit', 'limit'), [(torch.bfloat16, 6.5, 1), (torch.float32, 18, 1), (torch.float16, -18, 0)]
)
def test_where_a_sigmoid_saturates(dtype: torch.dtype, logit: float, limit: int) -> None:
    at, before = (torch.tensor([value], dtype=dtype).sigmoid().item() for value in (logit, logit * 0.85))
    assert at == limit != before


def test_equal_scores_of_different_classes_do_not_meet() -> None:
    assert score_warnings({'upgraded': Detections(torch.full((10,), 0.5), torch.arange(10))}) == []


def test_a_few_ties_happen_by_chance() -> None:
    found = some(1000, classes=1)
    found.scores[:48] = 0.5
    assert score_warnings({'upgraded': found}) == []
    found.scores[:52] = 0.5
    assert len(score_warnings({'upgraded': found})) == 1


def test_zeros_and_unknown_velocities() -> None:
    found = some(200)
    found.scores[7] = 0.0
    found.velocities[3:5, 1] = NAN
    zeros, velocities = score_warnings({'upgraded': found})
    assert zeros.startswith('upgraded: 1 of 200 detections have a score of exactly 0.')
    assert velocities.startswith('upgraded: 2 of 200 predicted velocities are not a number.')
    assert score_warnings({'upgraded': found}, nuscenes=False) == []


def test_other_evaluations_hear_of_ties_only() -> None:
    (warning,) = score_warnings({'upgraded': Detections(torch.zeros(9), torch.zeros(9))}, nuscenes=False)
    assert '9 of 9' in warning and 'mATE' not in warning


def test_what_is_warned_of_is_what_the_devkit_does() -> None:
    """Different scores that bfloat16 makes equal: the errors then depend on the order in the file."""
    scores = torch.linspace(0.9001, 0.9004, 4)
    for rounded in (scores, scores.bfloat16().float()):
        rows = [box(10 * i + (i == 0), float(score)) for i, score in enumerate(rounded)]
        truth = [box(10 * i) for i in range(4)]
        first, second = (evaluate_class(truth, order)[1]['trans_err'] for order in (rows, rows[::-1]))
        assert (first != second) == bool(score_warnings({'upgraded': Detections(rounded, torch.zeros(4))}))


def sample(number: int, columns: int = 9) -> SimpleNamespace:
    boxes = LiDARInstance3DBoxes(torch.arange(float(number * columns)).view(number, columns), box_dim=columns)
    found = InstanceData(bboxes_3d=boxes, scores_3d=torch.rand(number), labels_3d=torch.zeros(number, dtype=torch.long))
    return SimpleNamespace(pred_instances_3d=found, pred_instances=InstanceData())


def test_what_the_hook_keeps() -> None:
    hook = DetectionsHook()
    assert len(hook.detections().scores) == 0
    samples = [sample(3), sample(0), sample(2)]
    hook.after_test_iter(None, 0, None, samples[:2])
    hook.after_test_iter(None, 1, None, samples[2:])
    found = hook.detections()
    assert torch.equal(found.scores, torch.cat([each.pred_instances_3d.scores_3d for each in samples]))
    assert found.velocities.tolist() == [[7.0, 8], [16, 17], [25, 26], [7, 8], [16, 17]]
    hook.after_test_iter(None, 2, None, [sample(1, columns=7)])
    assert hook.detections().velocities is None and len(hook.detections().labels) == 6


def test_boxes_in_the_image_and_unknown_outputs() -> None:
    hook = DetectionsHook()
    flat = InstanceData(scores=torch.ones(2), labels=torch.tensor([1, 2]), bboxes=torch.zeros(2, 4))
    hook.after_test_iter(None, 0, None, [SimpleNamespace(pred_instances=flat), torch.zeros(3), {}])
    assert hook.detections().labels.tolist() == [1, 2]


def test_the_hook_goes_away_whatever_happens(tmp_path: Path) -> None:
    runner = Runner.from_cfg(Config.fromfile(toy_runner.write_config(tmp_path / 'config.py', tmp_path)))
    before = list(runner.hooks)
    with collected(runner) as found:
        assert found in runner.hooks
    assert runner.hooks == before
    with pytest.raises(KeyboardInterrupt), collected(runner):
        raise KeyboardInterrupt
    assert runner.hooks == before


def test_an_upgrade_reports_saturated_scores(tmp_path: Path, overrides: dict[str, Any], petr_checkpoint: Path) -> None:
    """Logits of 30 are a score of 1 even in float32."""
    stored = torch.load(petr_checkpoint, weights_only=True)
    for name in [name for name in stored['state_dict'] if 'cls_branches' in name and name.endswith('6.bias')]:
        stored['state_dict'][name].fill_(30.0)
        stored['state_dict'][name.replace('bias', 'weight')].zero_()
    torch.save(stored, tmp_path / 'saturated.pth')
    report = run_upgrade(
        CONFIG, tmp_path / 'saturated.pth', TgGBCPlan(r=150, n=2, k=40), tmp_path / 'out', overrides, 1, 1, pictures=0
    )
    assert [warning.split(':')[0] for warning in report['warnings']] == ['baseline', 'upgraded']
    assert all('most often 1 (' in warning for warning in report['warnings'])
    assert json.loads((tmp_path / 'out' / 'report.json').read_text())['warnings'] == report['warnings']
    logs = [path.read_text() for path in (tmp_path / 'out').rglob('*.log')]
    assert all(any(warning in log for log in logs) for warning in report['warnings'])
    text = (tmp_path / 'out' / 'report.md').read_text()
    assert '## Warnings' in text and all(f'* {warning}' in text for warning in report['warnings'])
    assert (
        reports.markdown({**report, 'warnings': []}, KeyComparison.rows).strip()
        == text.partition('## Warnings')[0].strip()
    )
