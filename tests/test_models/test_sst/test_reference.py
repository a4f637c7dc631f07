"""SST against recorded outputs of the official implementation: every file of the folder, and parts on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune3d.layers.sst_block import SSTBlock
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens
from mmprune3d.ops.windows import plan_windows
from tests.reference import load, reference_files

from .small_sst import built
from .test_center_head import config as head_config


def file(path: Path) -> tuple[dict[str, Any], dict[str, Any], Callable[[Tensor, Tensor], None]]:
    """The file's content, its meta and how to compare with it."""
    data = load(path)
    atol = data['meta']['suggested_atol']
    return data, data['meta'], lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def grouped(data: dict, order: Tensor | None = None) -> WindowedTokens:
    """The recorded tokens, in another order if wanted, through the input layer (no case but one drops tokens)."""
    meta, inputs = data['meta'], data['inputs']
    coords = inputs['coors']
    feats = inputs.get('feats', torch.zeros(len(coords), meta.get('feat_dim', 1)))
    if order is not None:
        feats, coords = feats[order], coords[order]
    return SSTInputLayer(**meta['input_layer']).eval()(feats, coords, meta['batch_size'])


def orders(count: int) -> list[Tensor]:
    """As given, and shuffled."""
    return [torch.arange(count), torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def recorded(root: nn.Module, part: str, calls: list) -> None:
    root.get_submodule(part).register_forward_hook(lambda module, inputs, out: calls.append(out))


REGIONS = reference_files('sst', 'region_batching_*.pt')


@pytest.mark.parametrize('path', REGIONS)
def test_windows_and_positions(path: Path) -> None:
    data, meta, close = file(path)
    kept = data['outputs'].get('kept', torch.arange(len(data['inputs']['coors'])))
    data['inputs']['coors'] = data['inputs']['coors'][kept]
    meta['input_layer']['drop_info'] = None  # what is kept is compared below
    for order in orders(len(kept)):
        tokens = grouped(data, order)
        assert torch.equal(tokens.coords, data['inputs']['coors'][order])
        for shift, (ids, positions) in enumerate(zip(tokens.window_ids, tokens.positions)):
            wanted = data['outputs'][f'shift{shift}']
            assert torch.equal(ids, wanted['win_inds'][order])
            close(positions, wanted['pos_embed'][order])
            windows, counts = ids.unique(return_counts=True)
            assert torch.equal(windows, wanted['win_ids']) and torch.equal(counts, wanted['tokens_per_win'])


@pytest.mark.parametrize('path', REGIONS)
def test_kept_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly those of the file, if ranks are the order of tokens as there."""
    monkeypatch.setattr(torch, 'randperm', lambda count, **_: torch.arange(count))
    data, meta, close = file(path)
    tokens = grouped(data)
    kept = data['outputs'].get('kept', torch.arange(meta['num_tokens']))
    assert ('kept' in data['outputs']) == (len(kept) < meta['num_tokens']) == meta.get('drops', False)
    assert torch.equal(tokens.coords, data['inputs']['coors'][kept])
    for shift in (0, 1):
        assert torch.equal(tokens.window_ids[shift], data['outputs'][f'shift{shift}']['win_inds'])
        close(tokens.positions[shift], data['outputs'][f'shift{shift}']['pos_embed'])


@pytest.mark.parametrize('path', REGIONS)
def test_numbers_of_kept_tokens_in_any_order(path: Path) -> None:
    """After the first pass a window has its limit of tokens, whichever; the second one only takes more away."""
    data, meta, _ = file(path)
    whole = grouped({**data, 'meta': {**meta, 'input_layer': {**meta['input_layer'], 'drop_info': None}}})
    table = meta['input_layer']['drop_info'].values()

    def limit(count: int) -> int:
        (level,) = (each for each in table if each['drop_range'][0] <= count < each['drop_range'][1])
        return min(count, level['max_tokens'])

    before = dict(zip(*(part.tolist() for part in whole.window_ids[0].unique(return_counts=True))))
    most = {window: limit(count) for window, count in before.items()}
    for seed in range(3):
        torch.manual_seed(seed)
        tokens = grouped(data)
        found = {tuple(row) for row in tokens.coords.tolist()}
        assert len(found) == len(tokens.coords) and found <= {tuple(row) for row in whole.coords.tolist()}
        after = dict(zip(*(part.tolist() for part in tokens.window_ids[0].unique(return_counts=True))))
        assert all(count <= most[window] for window, count in after.items())
        largest = max(each['max_tokens'] for each in table)
        assert tokens.window_ids[1].unique(return_counts=True)[1].max() <= largest
        lost = sum(most.values()) - len(tokens.coords)
        assert lost == 0 if not meta.get('drops') else 0 <= lost < sum(before.values()) - sum(most.values())


@pytest.mark.parametrize(('backend', 'grad'), [('sdpa', False), ('sdpa', True), ('explicit', False)], ids=str)
@pytest.mark.parametrize('path', reference_files('sst', 'encoder_block_*.pt'))
def test_blocks(path: Path, backend: str, grad: bool) -> None:
    data, meta, close = file(path)
    settings = dict(meta['block'])
    widths = [settings.pop(name) for name in ('d_model', 'nhead', 'dim_feedforward')]
    block = SSTBlock(*widths, **settings.pop('layer_cfg'), **settings, backend=backend).eval()
    block.load_state_dict(data['state_dict'], strict=True)
    attended: list[Tensor] = []
    layers: list[Tensor] = []
    for number in (0, 1):
        recorded(block, f'encoder_list.{number}.win_attn', attended)
        recorded(block, f'encoder_list.{number}', layers)
    middle = data['intermediates']
    for order in orders(meta['num_tokens']):
        attended.clear(), layers.clear()
        tokens = grouped(data, order)
        with torch.set_grad_enabled(grad):
            out = block(tokens.feats, tokens.positions, [plan_windows(ids) for ids in tokens.window_ids])
        for shift in (0, 1):
            assert torch.equal(tokens.window_ids[shift], middle[f'win_inds_shift{shift}'][order])
            close(tokens.positions[shift], middle[f'pos_embed_shift{shift}'][order])
            close(attended[shift].detach(), middle[f'attn_layer{shift}'][order])
            close(layers[shift].detach(), data['outputs'][f'layer{shift}'][order])
        assert out is layers[1]


@pytest.mark.parametrize('path', reference_files('sst', 'sstv2_*.pt'))
def test_backbones(path: Path) -> None:
    data, meta, close = file(path)
    backbone = built(dict(type='SSTBackbone', **meta['backbone'])).eval()
    backbone.load_state_dict(data['state_dict'], strict=True)
    blocks: list[Tensor] = []
    for number in range(meta['backbone']['num_blocks']):
        recorded(backbone, f'block_list.{number}', blocks)
    for order in orders(meta['num_tokens']):
        blocks.clear()
        with torch.no_grad():
            (out,) = backbone(grouped(data, order))
        outputs = data['outputs']
        close(out, outputs['bev'] if 'bev' in outputs else outputs['tokens'][order])
        for number, found in enumerate(blocks):
            wanted = data['intermediates'].get(f'tokens_block{number}', outputs.get('tokens'))
            close(found, wanted[order])


@pytest.mark.parametrize('path', reference_files('sst', 'vfe_*.pt'))
def test_voxel_encoders(path: Path) -> None:
    data, meta, close = file(path)
    encoder = built(dict(type='SSTDynamicVFE', **meta['voxel_encoder'])).eval()
    encoder.load_state_dict(data['state_dict'], strict=True)
    entered: list[Tensor] = []
    left: list[Tensor] = []
    for number, layer in enumerate(encoder.vfe_layers):
        layer.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        recorded(encoder, f'vfe_layers.{number}', left)
    for order in orders(meta['num_points']):
        entered.clear(), left.clear()
        with torch.no_grad():
            feats, coords = encoder(data['inputs']['points'][order], data['inputs']['coors'][order])
        assert torch.equal(coords.long(), data['outputs']['voxel_coors'])
        close(feats, data['outputs']['voxel_feats'])
        if meta.get('store_intermediates', True):
            for number, points in enumerate(zip(entered, left, strict=True)):
                for found, name in zip(points, ('input', 'point_feats')):
                    close(found, data['intermediates'][f'layer{number}_{name}'][order])


@pytest.mark.parametrize('path', reference_files('sst', 'e2e_*.pt'))
def test_from_points_to_the_map(path: Path) -> None:
    """Data preprocessor, voxel encoder, input layer and backbone, as the detector chains them; it has no neck."""
    data, meta, close = file(path)
    preprocessor = dict(
        type='Det3DDataPreprocessor', voxel=True, voxel_type='dynamic', voxel_layer=dict(meta['voxel_layer'])
    )
    parts = ('voxel_encoder', 'middle_encoder', 'backbone')
    kinds = ('SSTDynamicVFE', 'SSTInputLayer', 'SSTBackbone')
    settings = (meta['voxel_encoder'], meta['input_layer'], meta['backbone'])
    configs = {part: dict(type=kind, **own) for part, kind, own in zip(parts, kinds, settings)}
    area, size = (list(meta['voxel_layer'][key]) for key in ('point_cloud_range', 'voxel_size'))
    place = dict(point_cloud_range=area, voxel_size=size, grid_size=list(meta['input_layer']['sparse_shape']))
    coder = dict(pc_range=area[:2], voxel_size=size[:2])
    head = head_config(velocity=False, bbox_coder=coder, **place)  # a detector must have one
    rest = dict(train_cfg=head.pop('train_cfg'), test_cfg=head.pop('test_cfg'))
    head = dict(type='SSTCenterHead', **head)
    model = built(dict(type='SSTDetector', data_preprocessor=preprocessor, bbox_head=head, **rest, **configs)).eval()
    missing, unexpected = model.load_state_dict(data['state_dict'], strict=False)
    assert not unexpected and all(key.startswith('bbox_head.') for key in missing)
    blocks: list[Tensor] = []
    for number in range(meta['backbone']['num_blocks']):
        recorded(model, f'backbone.block_list.{number}', blocks)
    batch = model.data_preprocessor(dict(inputs=dict(points=data['inputs']['points']), data_samples=None))['inputs']
    middle = data['intermediates']
    assert torch.equal(batch['voxels']['coors'].long(), middle['coors'])
    with torch.no_grad():
        tokens = model.tokens(batch)
        (found,) = model.extract_feat(batch)
    assert torch.equal(tokens.coords, middle['voxel_coors']) and tokens.batch_size == meta['batch_size']
    close(tokens.feats, middle['voxel_feats'])
    for shift in (0, 1):
        most = tokens.window_ids[shift].unique(return_counts=True)[1].max()
        assert most == middle[f'max_tokens_per_win_shift{shift}']
    for number, block in enumerate(blocks):
        close(block, middle[f'tokens_block{number}'])
    close(found, data['outputs']['bev'])
