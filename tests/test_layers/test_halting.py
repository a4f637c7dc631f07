"""The modules that score tokens: what they read, where, and that shortcuts in the computation change nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmprune3d.layers.halting import ConvNorm, HaltingMLP, HaltingUNet, InvertedResidual, Merge, enlarge

BN = dict(type='BN', eps=1e-3, momentum=0.01)
SHAPES = [(12, 16), (13, 15), (9, 10), (1, 5)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def stir(module: nn.Module) -> nn.Module:
    """Norms get statistics and weights as after training; everything becomes float64."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in ((layer.weight, 0.5, 1.5), (layer.running_var, 0.5, 2.0)):
                nn.init.uniform_(values, low, high)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
    return module.double()


def unet(**changes: object) -> HaltingUNet:
    settings = dict(in_channels=6, token_channels=10, widths=(4, 6, 8))
    return stir(HaltingUNet(**{**settings, **changes})).eval()


def tokens(shape: tuple[int, int], batch_size: int = 3, share: float = 0.4) -> tuple[Tensor, Tensor]:
    """Features [N, 10] and coordinates of tokens in some cells of samples 0 and 2, sorted by (b, y, x)."""
    b, y, x = (torch.rand(batch_size, *shape) < share).nonzero().unbind(1)
    coords = torch.stack([b, torch.zeros_like(b), y, x], 1)[b != 1]
    return torch.randn(len(coords), 10, dtype=torch.float64), coords


def plain(layer: ConvNorm, x: Tensor) -> Tensor:
    """Convolution, norm, activation, one after the other."""
    x = layer.norm(layer.conv(x))
    return x.clamp(0, 6) if layer.activate else x


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('settings', [dict(), dict(kernel=3, groups=4), dict(kernel=3, stride=2, groups=4)])
def test_folded_norms_and_products_change_nothing(settings: dict, training: bool) -> None:
    for activate in (False, True):
        layer = stir(ConvNorm(4, 4 if settings else 7, BN, activate=activate, **settings)).train(training)
        x = 4 * torch.randn(2, 4, 7, 9, dtype=torch.float64)
        torch.testing.assert_close(layer(x), plain(layer, x))


@pytest.mark.parametrize('norm_cfg', [dict(type='BN', affine=False), dict(type='GN', num_groups=2)])
def test_norms_that_cannot_be_folded_are_applied(norm_cfg: dict) -> None:
    layer = ConvNorm(4, 6, norm_cfg, activate=True).double().eval()
    x = 3 + torch.randn(2, 4, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(layer, x))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('shape', SHAPES[1:])
def test_merge_is_a_convolution_of_concatenated_maps(shape: tuple[int, int], training: bool) -> None:
    merge = stir(Merge(5, 3, 4, BN)).train(training)
    fine = torch.randn(2, 3, *shape, dtype=torch.float64)
    coarse = torch.randn(2, 5, *((size + 1) // 2 for size in shape), dtype=torch.float64)
    y, x = (torch.arange(size) // 2 for size in shape)
    concatenated = torch.cat([coarse[:, :, y][..., x], fine], 1)
    torch.testing.assert_close(merge(coarse, fine), plain(merge.conv, concatenated))


def test_inverted_residual_is_that_of_mobilenet() -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    block = stir(InvertedResidual(4, 4, 1, 3, BN)).eval()
    widen, depthwise, narrow = block.layers
    torch.testing.assert_close(block(x), x + plain(narrow, plain(depthwise, plain(widen, x))))
    assert widen.conv.out_channels == depthwise.conv.groups == 12
    down = stir(InvertedResidual(4, 5, 2, 1, BN)).eval()
    torch.testing.assert_close(down(x), plain(down.layers[1], plain(down.layers[0], x)))
    assert down(x).shape == (2, 5, 4, 5)


def unet_slowly(model: HaltingUNet, grid: Tensor) -> Tensor:
    """Three levels written out, with concatenation."""

    def block(module: InvertedResidual, x: Tensor) -> Tensor:
        y = x
        for layer in module.layers:
            y = plain(layer, y)
        return x + y if y.shape == x.shape else y

    at_1 = block(model.stem, grid)
    at_2 = block(model.encoder[0][1], block(model.encoder[0][0], at_1))
    at_4 = block(model.encoder[1][1], block(model.encoder[1][0], at_2))
    up = F.interpolate(at_4, scale_factor=2)[..., : at_2.shape[2], : at_2.shape[3]]
    at_2 = block(model.decoder[1], plain(model.merges[1].conv, torch.cat([up, at_2], 1)))
    up = F.interpolate(at_2, scale_factor=2)[..., : at_1.shape[2], : at_1.shape[3]]
    return block(model.decoder[0], plain(model.merges[0].conv, torch.cat([up, at_1], 1)))


@pytest.mark.parametrize('shape', SHAPES)
def test_unet_equals_the_one_written_out(shape: tuple[int, int]) -> None:
    """One token at a time onto the grid and back; the sample in the middle has none."""
    model, (feats, coords) = unet(), tokens(shape)
    grid = torch.zeros(3, 6, *shape, dtype=torch.float64)
    for feat, (b, _, y, x) in zip(feats, coords.tolist(), strict=True):
        grid[b, :, y, x] = feat[:6]
    scores, latent, bev_map = model(feats, coords, 3, shape)
    expected = unet_slowly(model, grid)
    torch.testing.assert_close(bev_map, expected)
    torch.testing.assert_close(latent, torch.stack([expected[b, :, y, x] for b, _, y, x in coords.tolist()]))
    torch.testing.assert_close(scores, torch.sigmoid(latent @ model.score.weight[0] + model.score.bias))


def test_samples_and_the_order_of_tokens_do_not_matter() -> None:
    model, (feats, coords) = unet(), tokens((12, 16))
    scores, _, bev_map = model(feats, coords, 3, (12, 16))
    mixed = torch.randperm(len(feats))
    torch.testing.assert_close(model(feats[mixed], coords[mixed], 3, (12, 16))[0], scores[mixed])
    own = coords[:, 0] == 2
    alone, _, alone_map = model(feats[own], coords[own] * torch.tensor([0, 1, 1, 1]), 1, (12, 16))
    torch.testing.assert_close(alone, scores[own])
    torch.testing.assert_close(alone_map, bev_map[2:])


def test_unet_sees_surroundings_and_the_mlp_does_not() -> None:
    """The first features of a token are read, the others are not."""
    feats, coords = tokens((12, 16))
    far = (coords[:, 0] == coords[0, 0]) & ((coords[:, 2:] - coords[0, 2:]).abs().amax(1) < 4)
    far[0] = False
    nearby, unread = feats.clone(), feats.clone()
    nearby[far] += 1
    unread[:, 6:] += 1
    mlp = HaltingMLP(6).double()
    for model, token_wise in ((unet(), False), (mlp, True)):
        scores = model(feats, coords, 3, (12, 16))[0]
        assert torch.equal(model(nearby, coords, 3, (12, 16))[0][0], scores[0]) is token_wise is model.token_wise
        assert torch.equal(model(unread, coords, 3, (12, 16))[0], scores)
    expected = torch.sigmoid(feats[:, :6] @ mlp.score.weight[0] + mlp.score.bias)
    torch.testing.assert_close(mlp(feats, coords, 3, (12, 16))[0], expected)
    assert mlp(feats, coords, 3, (12, 16))[1:] == (None, None)


def test_tokens_above_each_other_are_summed() -> None:
    model = unet()
    feats, coords = torch.randn(2, 10, dtype=torch.float64), torch.tensor([[0, 0, 3, 4], [0, 1, 3, 4]])
    stacked = model(feats, coords, 1, (8, 8))[2]
    torch.testing.assert_close(stacked, model(feats.sum(0, keepdim=True), coords[:1], 1, (8, 8))[2])


@pytest.mark.parametrize('training', [False, True])
def test_gradients_match_finite_differences(training: bool) -> None:
    """Also those of norms that are folded into weights."""
    model = unet(widths=(3, 4), norm_cfg=dict(type='BN', momentum=0.0)).train(training)
    feats, coords = tokens((5, 6), share=0.3)
    inputs = (feats.requires_grad_(), model.stem.layers[0].norm.weight, model.merges[0].conv.conv.weight)
    assert torch.autograd.gradcheck(lambda f, *_: model(f, coords, 3, (5, 6)), inputs, fast_mode=True)


def test_every_parameter_is_trained() -> None:
    model = HaltingUNet(6, 10, (4, 6, 8)).train()
    feats, coords = tokens((12, 16))
    model(feats.float(), coords, 3, (12, 16))[0].square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize('kind', ['HaltingUNet', 'HaltingMLP'])
def test_registered_and_loads_its_own_weights(kind: str) -> None:
    settings = dict(type=kind, in_channels=6, **({'token_channels': 10} if kind == 'HaltingUNet' else {}))
    first, second = (MODELS.build(dict(settings)).eval() for _ in range(2))
    feats, coords = tokens((12, 16))
    feats = feats.float()
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(second(feats, coords, 3, (12, 16))[0], first(feats, coords, 3, (12, 16))[0])


@pytest.mark.parametrize('init_score', [0.1, 0.5, 0.9])
def test_first_scores_are_about_as_told(init_score: float) -> None:
    feats, coords = tokens((12, 16))
    for model in (HaltingUNet(6, 10, (4, 6, 8), init_score=init_score).eval(), HaltingMLP(6, init_score=init_score)):
        assert model(feats.float(), coords, 3, (12, 16))[0].mean().item() == pytest.approx(init_score, abs=0.1)


@pytest.mark.parametrize('training', [False, True])
def test_no_tokens(training: bool) -> None:
    feats, coords = torch.zeros(0, 10), torch.zeros(0, 4, dtype=torch.int64)
    scores, latent, bev_map = HaltingUNet(6, 10, (4, 6, 8)).train(training)(feats, coords, 2, (9, 11))
    assert scores.shape == (0,) and latent.shape == (0, 4) and bev_map.shape == (2, 4, 9, 11)
    assert bev_map.isfinite().all()
    assert HaltingMLP(6).train(training)(feats, coords, 2, (9, 11))[0].shape == (0,)


def test_enlarging_repeats_and_crops() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert enlarge(x, (3, 5))[0, 0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def test_errors_name_what_is_wrong() -> None:
    feats, coords = torch.zeros(2, 8), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match='in_channels=32, but tokens have 16 features'):
        HaltingUNet(32, 16)
    with pytest.raises(ValueError, match='token_channels=10, but tokens have 8'):
        HaltingUNet(6, 10)(feats, coords, 1, (4, 4))
    with pytest.raises(ValueError, match='in_channels=32, but tokens have 8'):
        HaltingMLP(32)(feats, coords, 1, (4, 4))
    with pytest.raises(ValueError, match='two channel counts or more'):
        HaltingUNet(widths=(32,))
    with pytest.raises(ValueError, match='expansion=0'):
        HaltingUNet(expansion=0)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match='must be a number above 0 and below 1'):
            HaltingMLP(init_score=wrong)
