"""Groups, prunable weights and switched-off sensors: counts of the official model, zeros, nothing left behind."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.models.layers.fusion_layers import PointFusion
from mmdet3d.models.voxel_encoders.voxel_encoder import HardVFE
from torch import nn

from mmprune3d.adapters import fusion
from mmprune3d.adapters.modality_masking import ModalityMasker, masked
from tests.reference import reference_files
from tests.test_engine.small_fusion import GROUPS, INTERFACES, RADAR_GROUPS, RADAR_INTERFACES, SmallFusion, batches

LAYERS = {3: nn.Conv1d, 4: nn.Conv2d}


class SubMConv3d(nn.Module):
    """Named like spconv's; mmdet3d's keys and layout."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def hollow(shapes: dict[str, list[int]], constants: set[str]) -> nn.Module:
    """Modules with these parameters, of the class that their shapes suggest."""
    root = type('BEVFusion', (nn.Module,), {'extract_img_feat': None, 'extract_pts_feat': lambda self: None})()
    root.extract_img_feat = lambda: None
    for key, shape in shapes.items():
        path, _, name = key.rpartition('.')
        parent = root
        for part in path.split('.'):
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        if name.startswith(('running_', 'num_batches', 'relative_position_index')):
            continue
        if name == 'weight':
            parent.__class__ = {1: nn.LayerNorm, 2: nn.Linear, 5: SubMConv3d, **LAYERS}[len(shape)]
        elif name == 'in_proj_weight':
            parent.__class__ = nn.MultiheadAttention
        kept = key in constants
        parent.register_parameter(name, nn.Parameter(torch.empty(shape, device='meta'), requires_grad=not kept))
    return root


@pytest.mark.parametrize('keys', reference_files('bevfusion', 'keys_*.json'))
def test_groups_and_weights_of_the_official_bevfusion(keys: Path):
    model_name = keys.stem.removeprefix('keys_')
    expected = json.loads((keys.parent / 'groups.json').read_text())['models'][model_name]
    constants = set(expected['non_trainable_parameter_names'])
    model = hollow(json.loads(keys.read_text()), constants)
    names = fusion.fusion_map(model)
    groups, weights = fusion.parameter_groups(model, names), fusion.prunable(model)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    for group, counts in expected['groups'].items():
        assert sum(n for name, n in trainable.items() if groups[name] == group) == counts['trainable_parameters']
        found = {name: p.numel() for name, p in weights.items() if groups[name] == group}
        assert sum(found.values()) == counts['prunable_weights']
        for child, numbers in counts['children'].items():
            sizes = [n for name, n in found.items() if name.startswith(f'{child}.')]
            assert (len(sizes), sum(sizes)) == (numbers['prunable_weight_tensors'], numbers['prunable_weights'])
    assert fusion.modalities(model, names) == (['camera', 'lidar'] if 'cam' in model_name else ['lidar'])
    assert not fusion.frozen(model)  # constants such as the frustum are no weights


def test_what_can_be_pruned():
    attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6)
    model = nn.ModuleDict(
        dict(
            deconv=nn.ConvTranspose2d(2, 3, 2),
            embedding=nn.Embedding(5, 4),
            norm=nn.LayerNorm([3, 4]),
            attention=attention,
            sparse=SubMConv3d([4, 3, 3, 3, 2]),
            stem=nn.Conv2d(3, 4, 3),
        )
    )
    model.stem.requires_grad_(False)
    model.table = nn.Parameter(torch.zeros(9, 4))
    model.index = nn.Parameter(torch.zeros(9, 4, dtype=torch.long), requires_grad=False)
    projections = [f'attention.{name}_proj_weight' for name in 'qkv']
    assert list(fusion.prunable(model)) == ['deconv.weight', *projections, 'attention.out_proj.weight', 'sparse.weight']
    assert list(fusion.frozen(model)) == ['stem.weight']


class Neck(nn.Conv2d):
    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor]:
        return (super().forward(maps),)


class MVXNet(nn.Module):
    """The voxel encoder and fusion layer of mmdet3d, around convolutions."""

    def __init__(self, fusion_layer: bool = True) -> None:
        super().__init__()
        self.img_backbone = nn.Conv2d(3, 5, 3, padding=1)
        self.img_neck = Neck(5, 4, 1)
        point_fusion = dict(type='PointFusion', img_channels=4, pts_channels=6, mid_channels=3, out_channels=5,
                            img_levels=[0], align_corners=False)  # fmt: skip
        self.pts_voxel_encoder = HardVFE(
            in_channels=3, feat_channels=[4, 6], fusion_layer=point_fusion if fusion_layer else None
        )
        self.pts_bbox_head = nn.Linear(5, 2)

    def extract_img_feat(self, img: torch.Tensor, metas: list[dict]) -> tuple[torch.Tensor]:
        metas[0]['input_shape'] = img.shape[-2:]  # the fusion layer wants it
        return self.img_neck(self.img_backbone(img))

    def forward(
        self, voxels: torch.Tensor, counts: torch.Tensor, coords: torch.Tensor, metas: list[dict], img: Any
    ) -> Any:
        maps = self.extract_img_feat(img, metas)
        return self.pts_bbox_head(self.pts_voxel_encoder(voxels, counts, coords, maps, metas))


class DynamicMVXFasterRCNN(MVXNet):
    pass


DynamicMVXFasterRCNN.__bases__[0].__name__ = 'MVXTwoStageDetector'


def mvx_inputs(num_voxels: int) -> tuple:
    generator = torch.Generator().manual_seed(num_voxels)
    metas = [dict(lidar2img=np.eye(4, dtype=np.float32), img_shape=(8, 8, 3))]
    voxels = torch.rand(num_voxels, 3, 3, generator=generator) * 6 + 1
    coords = torch.zeros(num_voxels, 4, dtype=torch.long)
    return voxels, torch.full((num_voxels,), 2), coords, metas, torch.rand(1, 3, 8, 8, generator=generator)


def test_mvxnet_whose_fusion_is_inside_of_the_voxel_encoder():
    torch.manual_seed(0)
    model = DynamicMVXFasterRCNN()
    assert isinstance(model.pts_voxel_encoder.fusion_layer, PointFusion)
    names = fusion.fusion_map(model)
    groups = fusion.parameter_groups(model, names)
    assert groups['pts_voxel_encoder.vfe_layers.0.linear.weight'] == 'lidar'
    assert groups['pts_voxel_encoder.fusion_layer.img_transform.0.weight'] == 'fusion'
    masker = ModalityMasker(model, names)
    inputs = []
    model.pts_voxel_encoder.fusion_layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    for num_voxels in (5, 9):  # the number of points changes the shape
        for modality in ('lidar', 'camera'):
            model.zero_grad()
            with masker.masked(modality):
                model(*mvx_inputs(num_voxels)).sum().backward()
            maps, points, features, _ = inputs[-1]
            alive = {groups[name] for name, p in model.named_parameters() if p.grad is not None}
            assert alive == {'camera', 'lidar', 'fusion'} - {modality}
            assert features.any() == (modality == 'camera') and maps[0].any() == (modality == 'lidar')
            assert len(features) == 2 * num_voxels == len(points[0])
    with pytest.raises(ValueError, match=r'has no pts_voxel_encoder.fusion_layer: it fuses no sensors.*groups=dict'):
        fusion.fusion_map(DynamicMVXFasterRCNN(fusion_layer=False))


def small(**kwargs: Any) -> tuple[SmallFusion, fusion.FusionMap]:
    torch.manual_seed(1)
    model = SmallFusion(**kwargs)
    radar = kwargs.get('radar')
    return model, fusion.fusion_map(model, RADAR_GROUPS if radar else GROUPS, RADAR_INTERFACES if radar else INTERFACES)


def state_of(model: nn.Module) -> tuple:
    tensors = [value.clone() for value in model.state_dict().values()]
    flags = [module.training for module in model.modules()]
    keys = [sorted(vars(module)) for module in model.modules()]
    return tensors, flags, keys, random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()


def assert_same_state(before: tuple, after: tuple) -> None:
    assert all(map(torch.equal, before[0], after[0])) and torch.equal(before[-1], after[-1])
    assert before[1:-1] == after[1:-1]


PREFIX = dict(camera='img_backbone', lidar='pts_middle_encoder', radar='radar_encoder')


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('modality', PREFIX)
def test_a_masked_modality_is_as_one_whose_parameters_are_all_zero(modality, training):
    """Eq. 3 with mu = 0, norm layers included."""
    model, names = small(radar=True)
    zeroed = copy.deepcopy(model)
    for parameter in getattr(zeroed, PREFIX[modality]).parameters():
        parameter.data.zero_()
    data = batches(1, size=3)[0]
    model.train(training), zeroed.train(training)
    with masked(model, modality, names):
        ours = model(**data, mode='loss')['loss_bbox']
    theirs = zeroed(**data, mode='loss')['loss_bbox']
    assert torch.equal(ours, theirs) and ours != copy.deepcopy(model)(**data, mode='loss')['loss_bbox']
    ours.backward(), theirs.backward()
    for (name, parameter), other in zip(model.named_parameters(), zeroed.parameters()):
        if name.startswith(PREFIX[modality]):
            assert parameter.grad is None
        else:
            assert torch.equal(parameter.grad, other.grad)


def test_the_masked_stream_does_not_run_and_nothing_is_left_behind():
    model, names = small(dropout=0.5)
    model.train(), model.pts_middle_encoder[1].eval()
    data, ran = batches(1)[0], []
    model.img_backbone.register_forward_hook(lambda *_: ran.append(model.training))
    before = state_of(model)
    masker = ModalityMasker(model, names)
    torch.manual_seed(5)
    draws = torch.rand(3)
    torch.manual_seed(5)
    inputs = {name: torch.stack(maps) for name, maps in data['inputs'].items()}
    with masker.masked('camera'):
        assert not model.extract_img_feat(inputs).any()
    assert ran == [False]  # once, in evaluation mode, to learn the shape
    assert torch.equal(torch.rand(3), draws)
    torch.set_rng_state(before[-1])
    assert_same_state(before, state_of(model))
    with masker.masked('camera'):
        model(**data, mode='loss')
    assert ran == [False]
    fresh = ModalityMasker(model, names)
    with fresh.masked(None):
        model(**data, mode='loss')
    with fresh.masked('camera'):
        model(**batches(2)[1], mode='loss')
    assert ran == [False, True]  # an earlier pass knew the shape
    larger = batches(1, size=5)[0]
    with fresh.masked('camera'):
        assert model(**larger).shape == (5, 2)
    assert ran == [False, True, False]


def test_the_model_is_whole_again_after_an_error():
    model, names = small()
    keys = [sorted(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match='oh'), masked(model, 'lidar', names):
        raise RuntimeError('oh')
    assert keys == [sorted(vars(module)) for module in model.modules()]


def test_an_average_over_modalities_goes_over_those_that_are_left():
    model, names = small(mean=True, radar=True)
    names = fusion.fusion_map(model, RADAR_GROUPS, RADAR_INTERFACES, mean_fusion='combine')
    inputs = batches(1)[0]['inputs']
    model.eval()
    tensors = {name: torch.stack(maps) for name, maps in inputs.items()}
    with masked(model, 'camera', names):
        found = model.fused(inputs)
    expected = (model.pts_middle_encoder(tensors['pts']) + model.radar_encoder(tensors['radar'])) / 2
    assert torch.allclose(found, expected, atol=1e-6)


def test_raw_data_of_a_masked_modality_can_be_hidden_from_the_others():
    model, _ = small()
    model.view_transform = nn.Module()
    model.view_transform.mask_points = False
    names = fusion.fusion_map(model, GROUPS, INTERFACES, cross_modal=dict(lidar='view_transform.mask_points'))
    for flag, modality, hidden in ((True, 'lidar', True), (True, 'camera', False), (False, 'lidar', False)):
        with masked(model, modality, names, mask_cross_modal_inputs=flag):
            assert model.view_transform.mask_points is hidden
        assert model.view_transform.mask_points is False
    del model.view_transform
    with pytest.raises(ValueError, match=r'SmallFusion has no flag for it .looked for view_transform.mask_points'):
        ModalityMasker(model, names, mask_cross_modal_inputs=True)


@pytest.mark.parametrize(
    'given, message',
    [
        ({}, r'SmallFusion \(with .*\) has no fusion map.*Valid are .*BEVFusion3D.*groups=dict.*interfaces=dict'),
        (
            dict(groups=dict(GROUPS, lidar=['voxels'])),
            "group 'lidar': SmallFusion has no module 'voxels'; its children",
        ),
        (
            dict(groups=dict(GROUPS, fusion='fusion_layer')),
            'these modules are in no group: bbox_head; groups are camera, lidar, fusion',
        ),
        (dict(groups=GROUPS, interfaces=dict(radar='x')), "'radar' is not a group; valid are camera, lidar, fusion"),
        (dict(groups=GROUPS, interfaces=dict(lidar='x')), "no method or module 'x' for the stream of 'lidar'"),
    ],
)
def test_maps_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        fusion.fusion_map(SmallFusion(), **given)


def test_unknown_modalities_and_streams_that_end_in_something_else():
    model, names = small()
    with (
        pytest.raises(ValueError, match="unknown modality 'radar'; those with an interface are camera, lidar"),
        masked(model, 'radar', names),
    ):
        pass
    model.extract_img_feat = lambda inputs: object()
    with pytest.raises(TypeError, match='gave a object; it must give tensors'), masked(model, 'camera', names):
        model(**batches(1)[0])
