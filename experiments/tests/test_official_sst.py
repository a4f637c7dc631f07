"""The published attention scheme, which is the benchmark's baseline, computes what our backbone computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.halting.official_sst import OfficialBackbone, OfficialBlocks, make_buckets
from mmprune3d.models.sst.backbone import SSTBackbone
from mmprune3d.models.sst.input_layer import SSTInputLayer, WindowedTokens


def tokens_of(window: int = 12, cells: int = 40, share: float = 0.5, channels: int = 32) -> WindowedTokens:
    """Two samples with denser and emptier windows: random cells of a map, fewer to the right."""
    generator = torch.Generator().manual_seed(0)
    density = share * torch.linspace(2, 0, cells)
    occupied = torch.rand(2, cells, cells, generator=generator) < density
    coords = torch.cat([rows := occupied.nonzero(), rows.new_zeros(len(rows), 1)], dim=1)[:, [0, 3, 1, 2]]
    feats = torch.randn(len(coords), channels, generator=generator)
    return SSTInputLayer(window_shape=(window, window, 1), sparse_shape=(cells, cells, 1)).eval()(feats, coords, 2)


def backbone_of(**options: object) -> SSTBackbone:
    """Two narrow blocks whose norms and biases do something."""
    torch.manual_seed(0)
    sizes = {'d_model': (32,) * 2, 'nhead': (4,) * 2, 'dim_feedforward': (48,) * 2, 'num_blocks': 2}
    sizes |= {'output_shape': (40, 40), 'num_attached_conv': 1, 'conv_in_channel': 32, 'conv_out_channel': 8}
    backbone = SSTBackbone(**sizes, **options).eval()
    for parameter in backbone.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return backbone


def counted(*counts: int) -> Tensor:
    """Window ids with these numbers of tokens."""
    return torch.repeat_interleave(torch.arange(len(counts)) * 7 + 3, torch.tensor(counts))


@pytest.mark.parametrize('post_norm', [True, False])
@pytest.mark.parametrize('activation', ['gelu', 'relu'])
@pytest.mark.parametrize('need_weights', [True, False])
def test_features_are_those_of_our_backbone(post_norm: bool, activation: str, need_weights: bool) -> None:
    tokens, backbone = tokens_of(), backbone_of(activation=activation, layer_cfg={'post_norm': post_norm})
    backbone.to_bev = False
    with torch.no_grad():
        expected = backbone(tokens)[0]
        official = OfficialBlocks(backbone, area=144, need_weights=need_weights).eval()
        found = official(tokens.feats, tokens.window_ids, tokens.positions)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (expected - tokens.feats).abs().max() > 0.5


def test_windows_of_14_have_their_area_as_the_last_bucket() -> None:
    tokens, backbone = tokens_of(window=14, share=0.7), backbone_of()
    sizes = [bucket.padding.shape[1] for bucket in make_buckets(tokens.window_ids[0], tokens.positions[0], area=196)]
    assert sizes[-1] == 196
    with torch.no_grad():
        found = OfficialBackbone(backbone, area=196).eval()(tokens)[0]
        expected = backbone(tokens)[0]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_weights_are_copies_under_the_same_keys() -> None:
    backbone = backbone_of()
    state, blocks = backbone.state_dict(), OfficialBlocks(backbone, area=144)
    assert set(blocks.state_dict()) == {key for key in state if key.startswith('block_list.')}
    for key, value in blocks.state_dict().items():
        assert torch.equal(value, state[key])
        assert value.data_ptr() != state[key].data_ptr()


def test_levels_are_half_open_ranges_of_the_number_of_tokens() -> None:
    counts = (1, 29, 30, 59, 60, 99, 100, 144)
    ids = counted(*counts)
    positions = torch.randn(len(ids), 4, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    buckets = make_buckets(ids[shuffled], positions, area=144)
    assert [tuple(bucket.padding.shape) for bucket in buckets] == [(2, 30), (2, 60), (2, 100), (2, 144)]
    assert [sorted((~bucket.padding).sum(1).tolist()) for bucket in buckets] == [
        [1, 29],
        [30, 59],
        [60, 99],
        [100, 144],
    ]
    assert torch.cat([bucket.rows for bucket in buckets]).sort().values.tolist() == list(range(len(ids)))
    for bucket in buckets:
        assert bucket.slots.unique().numel() == len(bucket.slots)
        assert torch.equal(bucket.positions[~bucket.padding], bucket.pad(positions)[~bucket.padding])
        assert torch.equal(bucket.positions.flatten(0, 1)[bucket.slots], positions[bucket.rows])
        assert not bucket.positions[bucket.padding].any()
        windows = bucket.slots // bucket.padding.shape[1]
        for window in windows.unique():
            assert ids[shuffled][bucket.rows[windows == window]].unique().numel() == 1


def test_no_tokens_are_no_buckets() -> None:
    assert make_buckets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), area=144) == []


def test_a_window_cannot_hold_more_tokens_than_cells() -> None:
    with pytest.raises(ValueError, match='holds 37 tokens, but has 36 cells'):
        make_buckets(counted(5, 37), torch.zeros(42, 4), area=36)


@pytest.mark.parametrize(
    ('options', 'message'), [({'cosine': True}, 'cosine'), ({'head_dims': 4}, '4 heads of 4 are not as wide')]
)
def test_attention_that_torch_does_not_have_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OfficialBlocks(backbone_of(layer_cfg=options), area=144)
