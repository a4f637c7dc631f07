"""mit-han-lab's BEVFusion weights become ours; sparse weights are read in the order that they are stored in."""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmprune3d.checkpoint.convert import CLASSES, convert_checkpoint, convert_state_dict
from mmprune3d.checkpoint.convert_bevfusion import convert_bevfusion, rename
from mmprune3d.checkpoint.load import load_state_dict
from mmprune3d.checkpoint.mismatch import CheckpointMismatchError
from mmprune3d.checkpoint.sparse_layout import with_sparse_versions
from mmprune3d.cli import main
from tests.reference import load, reference_files

HEAD = 'heads.object.prediction_heads.0'


@pytest.mark.parametrize('path', reference_files('bevfusion', 'mit_checkpoint_conversion.pt'))
def test_every_tensor_is_the_recorded_one(path: Path) -> None:
    recorded = load(path)
    before = {key: value.clone() for key, value in recorded['state_dict'].items()}
    converted = convert_bevfusion(recorded['state_dict'])
    expected = recorded['outputs']['state_dict']
    assert list(converted) == list(expected)
    for key, value in expected.items():
        assert converted[key].dtype == value.dtype and torch.equal(converted[key], value), key
    dropped = [key for key in recorded['state_dict'] if rename(key) is None]
    assert dropped == list(recorded['outputs']['dropped']) and dropped
    assert all(torch.equal(before[key], value) for key, value in recorded['state_dict'].items())


@pytest.mark.parametrize('path', reference_files('bevfusion', 'mit_keys_lidar_cam.json'))
def test_full_size_keys_map_one_to_one(path: Path) -> None:
    theirs = json.loads(path.read_text())
    ours = json.loads(path.with_name('keys_lidar_cam.json').read_text())
    converted = convert_bevfusion({key: torch.empty(shape, device='meta') for key, shape in theirs.items()})
    assert {key: list(value.shape) for key, value in converted.items()} == ours


@pytest.mark.parametrize('path', reference_files('bevfusion', 'mit_key_map.json'))
def test_names_follow_the_recorded_rules(path: Path) -> None:
    """The rules as data, interpreted here, against the rules in code."""
    rules = json.loads(path.read_text())
    keys = json.loads(path.with_name('mit_keys_lidar_cam.json').read_text())
    for key in keys:
        (expected,) = [ours + key.removeprefix(old) for old, ours in rules['prefix_rules'] if key.startswith(old)]
        for pattern, replacement in rules['decoder_rules']:
            expected = re.sub(pattern, replacement, expected)
        assert rename(key) == expected


def tiny() -> OrderedDict[str, Tensor]:
    """A few tensors of their names: a sparse convolution, and box branches with two and three layers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        'encoders.lidar.backbone.conv_input.0.weight': (3, 3, 3, 2, 4),
        'fuser.0.weight': (4, 2, 3, 3),
        f'{HEAD}.dim.1.weight': (3, 5, 1),
        f'{HEAD}.dim.1.bias': (3,),
        f'{HEAD}.rot.0.conv.weight': (2, 2, 1),
        f'{HEAD}.rot.1.weight': (2, 2, 1),
        f'{HEAD}.rot.2.weight': (2, 5, 1),
        f'{HEAD}.rot.2.bias': (2,),
        f'{HEAD}.center.1.weight': (2, 5, 1),
    }
    return OrderedDict((key, torch.randn(shape, generator=generator)) for key, shape in shapes.items())


def test_only_last_layers_of_dim_and_rot_change() -> None:
    theirs = tiny()
    ours = convert_bevfusion(theirs)
    kept = [key for key in theirs if ours[rename(key)] is theirs[key]]
    assert kept == ['fuser.0.weight', *[f'{HEAD}.{name}.weight' for name in ('rot.0.conv', 'rot.1', 'center.1')]]
    prefix = rename(HEAD + '.')
    hidden = torch.randn(5, 1)
    length, width, height = ours[f'{prefix}dim.1.weight'][..., 0] @ hidden
    assert torch.equal(torch.stack((width, length, height)), theirs[f'{HEAD}.dim.1.weight'][..., 0] @ hidden)
    sin, cos = ours[f'{prefix}rot.2.weight'][..., 0] @ hidden + ours[f'{prefix}rot.2.bias'][:, None]
    their_sin, their_cos = theirs[f'{HEAD}.rot.2.weight'][..., 0] @ hidden + theirs[f'{HEAD}.rot.2.bias'][:, None]
    turn = torch.atan2(sin, cos) + torch.atan2(their_sin, their_cos) + math.pi / 2
    assert torch.remainder(turn + 1, 2 * math.pi).sub(1).abs().max() < 1e-6


def test_strangers_are_refused() -> None:
    radar = {'encoders.radar.backbone.x': torch.ones(1), 'foo': torch.ones(1)}
    with pytest.raises(ValueError, match=r'(?s)2 of 11 keys.*encoders\.radar.*foo.*fuser\.'):
        convert_bevfusion(tiny() | radar)
    with pytest.raises(ValueError, match=r'no keys heads\.object'):
        convert_bevfusion({'fuser.0.weight': torch.ones(1)})
    with pytest.raises(ValueError, match='5 rows; the last layer of dim has 3'):
        convert_bevfusion(tiny() | {f'{HEAD}.dim.1.weight': torch.ones(5, 5, 1)})
    already = {'encoders.lidar.backbone.conv_input.0.weight': torch.ones(4, 3, 3, 3, 2)}
    with pytest.raises(ValueError, match='spconv 1: these weights were converted before'):
        convert_bevfusion(tiny() | already)
    with pytest.raises(ValueError, match='petr-mmdet3d, bevfusion-mit'):
        convert_state_dict(tiny(), 'bevfusion')


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source, target = tmp_path / 'theirs.pth', tmp_path / 'ours.pth'
    torch.save({'state_dict': tiny(), 'meta': {'epoch': 6}}, source)
    assert main(['checkpoint', 'convert', str(source), str(target), '--source', 'bevfusion-mit']) == 0
    assert 'ours.pth' in capsys.readouterr().out
    found = torch.load(target, weights_only=True)
    assert found['meta'] == {'converted_from': 'bevfusion-mit', 'dataset_meta': {'classes': CLASSES}}
    assert found['state_dict']._metadata == {'pts_middle_encoder.conv_input.0': {'version': 2}}
    with pytest.raises(ValueError, match='already converted from bevfusion-mit'):
        convert_checkpoint(found, 'bevfusion-mit')


class TestSparseLayout:
    """State dicts of both orders, with and without a version, and with a wrong one."""

    @pytest.fixture
    def models(self) -> list[nn.Module]:
        spconv = pytest.importorskip('spconv.pytorch')
        import mmdet3d.models.layers.spconv  # noqa: F401  makes the layers read the version

        def build() -> nn.Module:
            # the first one has five times the size 3: its shape says nothing
            return nn.Sequential(
                spconv.SubMConv3d(3, 3, 3, bias=True), nn.BatchNorm1d(3), spconv.SparseConv3d(4, 5, 3, bias=False)
            )

        torch.manual_seed(0)
        source, target = build(), build()
        assert not torch.equal(source[0].weight, target[0].weight)
        return [source, target]

    @staticmethod
    def stored(model: nn.Module, order: int, version: int | None) -> OrderedDict[str, Tensor]:
        """The weights of `model` in the order of spconv `order`, with metadata that claims `version`."""
        state = OrderedDict((key, value.clone()) for key, value in model.state_dict().items())
        if order == 1:
            state |= {key: value.permute(1, 2, 3, 4, 0) for key, value in state.items() if value.dim() == 5}
        if version is not None:
            state._metadata = {name: {'version': version} for name in ('0', '2')} | {'1': {'version': 2}}
        return state

    @staticmethod
    def same(source: nn.Module, target: nn.Module) -> bool:
        return all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())

    @pytest.mark.parametrize('version', [None, 1, 2])
    @pytest.mark.parametrize('order', [1, 2])
    def test_the_shapes_decide(self, models: list[nn.Module], order: int, version: int | None) -> None:
        source, target = models
        load_state_dict(target, self.stored(source, order, version), strict=True)
        assert self.same(source, target)

    @pytest.mark.parametrize(('order', 'version'), [(1, None), (1, 1), (2, 2)])
    def test_the_version_decides_where_shapes_do_not(
        self, models: list[nn.Module], order: int, version: int | None
    ) -> None:
        source, target = (model[:2] for model in models)
        load_state_dict(target, self.stored(source, order, version), strict=True)
        assert self.same(source, target)

    def test_state_dicts_and_models_are_not_changed(self, models: list[nn.Module]) -> None:
        state = self.stored(models[0], 1, 2)
        metadata = {name: dict(each) for name, each in state._metadata.items()}
        assert with_sparse_versions(models[1], state)['0'] == {'version': 1}
        assert state._metadata == metadata
        dense = nn.Sequential(nn.Conv3d(2, 2, 3))
        assert with_sparse_versions(dense, dict(dense.state_dict())) == {}

    def test_a_third_order_is_an_error(self, models: list[nn.Module]) -> None:
        state = self.stored(models[0], 2, None)
        state['2.weight'] = state['2.weight'].permute(0, 4, 1, 2, 3).contiguous()
        with pytest.raises(CheckpointMismatchError, match=r'2\.weight'):
            load_state_dict(models[1], state)

    def test_each_tensor_that_tells_is_believed(self, models: list[nn.Module]) -> None:
        """Two orders in one state dict: every tensor is read in its own, the version decides for the doubtful one."""
        spconv = pytest.importorskip('spconv.pytorch')
        source, target = (model.append(spconv.SubMConv3d(5, 7, 3, bias=False)) for model in models)
        state = self.stored(source, 2, 2)
        state['3.weight'] = state['3.weight'].permute(1, 2, 3, 4, 0).contiguous()
        load_state_dict(target, state, strict=True)
        assert self.same(source, target)

    def test_a_file_of_a_plain_dict_loads_by_mmengine(self, models: list[nn.Module], tmp_path: Path) -> None:
        """What training tools that copy state dicts leave behind."""
        source, target = models
        torch.save({'meta': {}, 'state_dict': dict(source.state_dict())}, tmp_path / 'plain.pth')
        load_checkpoint(target, str(tmp_path / 'plain.pth'), map_location='cpu', strict=True)
        assert self.same(source, target)
