"""Settings of SST that must agree with each other and with the batch; and batches of few points or none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .small_sst import built, cloud, detector_config
from .test_center_head import RANGE, features, head, truth

BN = dict(type='BN1d', eps=1e-3, momentum=0.01)


def changed(kind: str = 'SSTDetector', **changes: Any) -> dict:
    """Settings of the small detector; changes by key with ``__`` for dots."""
    settings = copy.deepcopy(detector_config(kind))
    for key, value in changes.items():
        *path, last = key.split('__')
        part = settings
        for name in path:
            part = part[name]
        part[last] = value
    return settings


def with_points(points: list[Tensor], objects: int = 2) -> tuple[dict, list]:
    samples = [cloud(number, objects) for number in range(len(points))]
    return dict(points=points), [sample['data_samples'] for sample in samples]


def run(model: nn.Module, mode: str, points: list[Tensor]) -> Any:
    inputs, samples = with_points([each.clone() for each in points])
    model.train(mode == 'loss')
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), mode == 'loss')
    with torch.set_grad_enabled(mode == 'loss'):
        return model(**data, mode=mode)


PLACES = [
    ('middle_encoder__sparse_shape', (40, 40, 1), r'middle_encoder.sparse_shape=\[40, 40, 1\] is too small'),
    ('backbone__output_shape', [40, 48], r'backbone.output_shape=\[40, 48\] is too small: .* has \[48, 40\] cells'),
    ('voxel_encoder__voxel_size', [0.4, 0.4, 6], 'voxel_size must be the same everywhere'),
    ('voxel_encoder__point_cloud_range', [-8.0, -6.0, -3, 8, 6, 3], 'point_cloud_range must be the same everywhere'),
    ('train_cfg__point_cloud_range', [-8.0, -5.0, -2, 8, 7, 4], 'the origin of the map'),
    ('train_cfg__voxel_size', [0.8, 0.25, 6], 'voxel_size along x and y must be the same everywhere'),
    ('train_cfg__grid_size', [48, 40, 1], 'the number of voxels along x and y'),
    ('train_cfg__out_size_factor', 2, 'out_size_factor must be the same everywhere'),
    ('bbox_head__bbox_coder__pc_range', [-6.0, -8.0], 'the origin of the map'),
    ('bbox_head__bbox_coder__voxel_size', [0.25, 0.4], 'voxel_size along x and y'),
    ('bbox_head__tasks', [dict(num_class=2, class_names=['car'])], "task 0 has num_class=2, but class_names=.'car'."),
    ('test_cfg__nms_type', 'rotated', "nms_type is 'rotated'; valid are circle, rotate"),
]


@pytest.mark.parametrize('kind', ['SSTDetector', 'HaltingSSTDetector'])
@pytest.mark.parametrize(('key', 'value', 'message'), PLACES, ids=[f'{key}={value}' for key, value, _ in PLACES])
def test_settings_agree(kind: str, key: str, value: Any, message: str) -> None:
    built(changed(kind))
    with pytest.raises(ValueError, match=message):
        built(changed(kind, **{key: value}))


def test_the_whole_head_may_be_elsewhere() -> None:
    """Head, coder and training settings agree with each other, and with nothing else."""
    area = [-10.0, -6.0, -2, 6, 6, 4]
    settings = changed(train_cfg__point_cloud_range=area, bbox_head__bbox_coder__pc_range=area[:2])
    with pytest.raises(ValueError, match=r'voxel_layer: \[-8, -6, 8, 6\], train_cfg: \[-10, -6, 6, 6\]'):
        built(settings)


def test_an_encoder_that_does_not_use_its_range_may_have_any() -> None:
    built(changed(voxel_encoder__with_voxel_center=False, voxel_encoder__voxel_size=[0.32, 0.32, 6]))
    with pytest.raises(ValueError, match='voxel_size must be the same'):  # halting draws targets on it
        built(
            changed(
                'HaltingSSTDetector',
                voxel_encoder__with_voxel_center=False,
                voxel_encoder__voxel_size=[0.32, 0.32, 6],
            )
        )


def test_grids_may_be_larger_than_needed() -> None:
    points = cloud(0)['inputs']['points']
    model, larger = built(changed()), built(changed(middle_encoder__sparse_shape=(60, 60, 1)))
    larger.load_state_dict(model.state_dict())
    expected, found = (run(detector, 'tensor', [points])[0][0] for detector in (model, larger))
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', ['loss', 'predict'])
def test_a_map_of_another_size_is_named(mode: str) -> None:
    model = head(velocity=False)
    maps = features()
    outputs = model([maps[0][..., :-1]])
    with pytest.raises(
        ValueError, match=r'map of \[48, 39\] cells along y and x, but train_cfg.grid_size=\[40, 48, 1\]'
    ):
        model.loss_by_feat(outputs, [truth(3, 0)]) if mode == 'loss' else model.predict_by_feat(outputs, [{}])


def test_voxels_that_do_not_fill_the_range_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('mmprune3d.layers.settings_check.print_log', lambda text, **_: said.append(text))
    built(changed())
    assert said == []
    area = [*RANGE[:3], 8.1, *RANGE[4:]]
    built(
        changed(
            data_preprocessor__voxel_layer__point_cloud_range=area,
            voxel_encoder__point_cloud_range=area,
            train_cfg__point_cloud_range=area,
        )
    )
    assert len(said) == 1
    assert 'data_preprocessor.voxel_layer: x from -8 to 8.1 is 40.25 voxels of 0.4; 40 are made' in said[0]
    assert 'points beyond 8 are dropped' in said[0]


@pytest.mark.parametrize('kind', ['SSTDetector', 'HaltingSSTDetector'])
@pytest.mark.parametrize('columns', [3, 5, 6])
@pytest.mark.parametrize('count', [0, 30])
def test_points_with_other_columns(kind: str, columns: int, count: int) -> None:
    message = rf'points have {columns} columns, but voxel_encoder.in_channels=4: use_dim of LoadPointsFromFile'
    with pytest.raises(ValueError, match=message):
        run(built(changed(kind)), 'predict', [torch.rand(count, columns)])


COUNTS = {
    'second without points': (300, 0),
    'first without points': (0, 300),
    'second with one point': (300, 1),
    'none at all': (0, 0),
    'one point in all': (1, 0),
    'one sample without points': (0,),
    'one sample with one point': (1,),
}


@pytest.mark.parametrize('counts', COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize('far', [False, True], ids=['', 'out of range'])
@pytest.mark.parametrize('kind', ['SSTDetector', 'use_bn', 'HaltingSSTDetector'])
def test_few_points_with_batch_norm(kind: str, far: bool, counts: tuple[int, ...]) -> None:
    """The detector trains and predicts, and every parameter of the point branch has its part in the gradient."""
    changes = dict(backbone__layer_cfg=dict(use_bn=True)) if kind == 'use_bn' else {}
    kind = 'SSTDetector' if kind == 'use_bn' else kind
    model = built(changed(kind, voxel_encoder__norm_cfg=BN, **changes))
    points = [cloud(number)['inputs']['points'][:count] for number, count in enumerate(counts)]
    if far:
        points = [each if len(each) else torch.full((4, 4), 500.0) for each in points]
    total, _ = model.parse_losses(run(model, 'loss', points))
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        assert parameter.grad is not None or not name.startswith('voxel_encoder'), name
    assert all(value.isfinite().all() for value in model.buffers())
    assert len(run(model, 'predict', points)) == len(counts)
