"""Scores by gradients of frames without objects: finite, and with a word about what they are worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmprune3d.adapters.fusion import fusion_map
from mmprune3d.engine.batches import CachedBatches, objects_in
from mmprune3d.engine.criteria import score_model
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.test_models.test_bevfusion.test_agreement import built, cloud, config, sample


def batch(objects: int) -> dict:
    samples = [sample() for _ in range(2)]
    for each in samples:
        each.gt_instances_3d = each.gt_instances_3d[:objects]
    images = [torch.full((6, 3, 64, 96), 50.0 * number) for number in range(2)]
    return dict(inputs=dict(points=[cloud(200), cloud(150, seed=1)], img=images), data_samples=samples)


@pytest.mark.parametrize(('objects', 'warned'), [((0, 0, 0), True), ((0, 1, 0), False)])
@pytest.mark.parametrize('criterion', ['altermoma', 'snip', 'prospr', 'magnitude'])
def test_scores(criterion: str, objects: tuple[int, ...], warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.engine.batches.print_log', lambda text, **_: said.append(text))
    model = built(config())
    batches = CachedBatches([batch(count) for count in objects], model.data_preprocessor)
    plan = AlterMOMAPlan(sparsity=0.5, criterion=criterion, eval_batches=2, reactivation_steps=1)
    scores = score_model(model, plan, batches, fusion_map(model))
    assert all(values.isfinite().all() for values in scores.values.values())
    assert len(said) == (warned and criterion != 'magnitude')
    if said:
        assert said[0].startswith(criterion) and 'has an object' in said[0]
        regression = [key for key in scores.values if 'prediction_heads.0.center' in key]
        assert regression and not any(scores.values[key].any() for key in regression)  # the reason for the warning


def test_counting() -> None:
    def of(*counts: int, name: str = 'gt_instances_3d') -> Any:
        return dict(data_samples=[BaseDataElement(**{name: InstanceData(labels=torch.zeros(n))}) for n in counts])

    assert objects_in([of(0, 2), of(3)]) == 5 and objects_in([of(0), of(0, 0)]) == 0
    assert objects_in([of(4, name='gt_instances')]) == 4
    assert objects_in([of(1), dict(data_samples=[BaseDataElement()])]) is None
    assert objects_in([dict(inputs=torch.zeros(1))]) is None and objects_in([torch.zeros(1)]) is None
