"""mmdet3d's own fusion detector, MVX-Net, on a frame of KITTI: fused inside of its voxel encoder, partly frozen."""

from __future__ import annotations

import pytest
import torch

from mmprune3d.adapters.dynamic_voxels import make_cpu_ready
from mmprune3d.adapters.fusion import fusion_map, parameter_groups
from mmprune3d.engine.batches import CachedBatches
from mmprune3d.engine.criteria import batches_needed, keep_report, make_masks, score_model
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.real_data import needs
from tests.test_adapters.test_mvxnet import build, frame  # noqa: F401, a fixture


@needs('kitti_frames')
@pytest.mark.real_data
@pytest.mark.parametrize('criterion', ['altermoma', 'prospr', 'snip', 'synflow'])
def test_scores_and_masks(frame: dict, criterion: str) -> None:  # noqa: F811
    model = build()
    make_cpu_ready(model)
    quick = dict(eval_batches=1, reactivation_steps=1, rounds=2 if criterion == 'synflow' else 1)
    plan = AlterMOMAPlan(sparsity=0.8, criterion=criterion, **quick)
    names = fusion_map(model)
    groups = parameter_groups(model, names)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = CachedBatches([frame] * batches_needed(plan), model.data_preprocessor)
    scores = score_model(model, plan, data, names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = keep_report(model, plan, names, scores, make_masks(scores, plan, groups))
    assert set(report['groups']) == {'camera', 'lidar', 'fusion'}
    assert report['total']['kept'] == report['total']['total'] - round(0.8 * report['total']['total'])
    assert any(name.startswith('img_backbone.layer1') for name in report['frozen'])
    for group in report['groups']:
        values = [score for name, score in scores.values.items() if groups[name] == group]
        assert any(score.any() for score in values)
        if criterion == 'altermoma':
            assert abs(sum(float(score.sum()) for score in values)) < 1e-4
