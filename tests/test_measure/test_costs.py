from __future__ import annotations

import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, nms_rotated
from torch import Tensor, nn
from torch.nn import functional

from mmprune3d.measure import flops
from mmprune3d.measure import report as reports
from mmprune3d.measure.flops import count_flops, count_operations
from mmprune3d.measure.memory import peak_memory
from mmprune3d.measure.timing import StageTimer, medians


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 64)
        self.pause = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.project(tokens).view(2, 100, 4, 16).transpose(1, 2)
        return self.pause(functional.scaled_dot_product_attention(heads, heads, heads))


@torch.no_grad()
def test_flops_equal_those_by_hand_with_fused_attention() -> None:
    model, tokens = Attention(), torch.randn(2, 100, 64)
    counts = count_flops(lambda: model(tokens), {'project': model.project})
    assert counts['project'] == pytest.approx(2 * 200 * 64 * 64 / 1e9)
    assert counts['rest'] == pytest.approx(2 * (2 * 2 * 4 * 100 * 100 * 16) / 1e9)
    assert counts['total'] == counts['project'] + counts['rest']


PROJECTIONS, SCORES = 4 * 2 * 20 * 16 * 16, 2 * 2 * 2 * 10 * 10 * 16
FEED_FORWARD = 2 * 2 * 20 * 16 * 32


@pytest.mark.parametrize('need_weights', [True, False])
@torch.no_grad()
def test_self_attention_of_torch_counts_in_evaluation(need_weights: bool) -> None:
    """Its fast path is one operator."""
    attention, tokens = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 10, 16)
    counted = count_operations(lambda: attention(*[tokens] * 3, need_weights=need_weights), {'all': attention})
    assert counted.gflops['all'] == counted.gflops['total'] == pytest.approx((PROJECTIONS + SCORES) / 1e9)
    assert counted.unknown == ()
    assert torch.backends.mha.get_fastpath_enabled()


@torch.no_grad()
def test_encoder_layers_of_torch_count_whole() -> None:
    layer, tokens = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 10, 16)
    padding = torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 5:] = True
    encoder = nn.TransformerEncoder(layer, 2).eval()  # with padding its fast path makes nested tensors
    one = (PROJECTIONS + SCORES + FEED_FORWARD) / 1e9
    assert count_flops(lambda: layer(tokens), {})['total'] == pytest.approx(one)
    counted = count_operations(lambda: encoder(tokens, src_key_padding_mask=padding), {})
    assert counted.gflops['total'] == pytest.approx(2 * one)
    assert counted.unknown == ()
    assert {'aten.native_layer_norm', 'aten.add'} <= set(counted.elementwise)


@torch.no_grad()
def test_the_fast_path_comes_back_after_an_error() -> None:
    def fail() -> None:
        assert not torch.backends.mha.get_fastpath_enabled()
        raise RuntimeError('inside')

    module = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match='inside'):
        count_operations(fail, {'all': module})
    assert torch.backends.mha.get_fastpath_enabled() and sys.getprofile() is None
    assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize(
    ('call', 'flops'),
    [
        (lambda: torch.ones(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5)), 2 * 3 * 4 * 5),
        (lambda: torch.ones(2, 3, 5).baddbmm_(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.ones(3, 5).addbmm(torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: torch.ones(3, 4) @ torch.ones(4), 2 * 3 * 4),
        (lambda: torch.ones(4) @ torch.ones(4), 2 * 4),
        (lambda: torch.ones(3).addmv(torch.ones(3, 4), torch.ones(4)), 2 * 3 * 4),
        (lambda: torch.einsum('ij,jk->ik', torch.ones(3, 4), torch.ones(4, 5)), 2 * 3 * 4 * 5),
    ],
    ids=['addmm_', 'baddbmm_', 'addbmm', 'mv', 'dot', 'addmv', 'einsum'],
)
@pytest.mark.parametrize('inference', [False, True])
def test_products_that_torchs_counter_lacks(call: Callable[[], Tensor], flops: int, inference: bool) -> None:
    with torch.inference_mode(inference):
        counted = count_operations(call, {})
    assert counted.gflops['total'] == pytest.approx(flops / 1e9)
    assert counted.unknown == ()


def test_our_sparse_convolution_counts_every_pair() -> None:
    layers = pytest.importorskip('mmprune3d.layers.sparse_conv')
    spconv = pytest.importorskip('spconv.pytorch')
    conv = layers.SubMConv3d(8, 16, 3, bias=False)
    sites = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 3, 3]]).int()  # two neighbours and one alone
    tensor = spconv.SparseConvTensor(torch.randn(3, 8), sites, [4, 4, 4], 1)
    counted = count_operations(lambda: conv(tensor), {})
    assert counted.gflops['total'] == pytest.approx(2 * 5 * 8 * 16 / 1e9)
    assert counted.unknown == ()


def test_what_has_no_counter_is_named() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [9, 9, 4, 2, 1]])

    def call() -> None:
        torch.linalg.inv(torch.eye(4) + torch.ones(4, 4))
        torch.fft.rfft(torch.ones(8))
        nms_rotated(boxes, torch.tensor([0.1, 0.2]), 0.5)
        (boxes.softmax(-1) + 1).topk(2).indices.sort().values.cumsum(0)[:, :1].T.contiguous()

    with patch.object(flops, 'print_log') as log:
        flops._tell.cache_clear()
        counted = count_operations(call, {})
        count_operations(call, {})
    expected = {'aten.linalg_inv_ex', 'aten._fft_r2c', 'mmcv._ext.nms_rotated'}
    assert expected <= set(counted.unknown) and not {'aten.sort', 'aten.cumsum'} & set(counted.unknown)
    assert counted.gflops['total'] == 0
    assert {'aten._softmax', 'aten.add', 'aten.topk', 'aten.sort', 'aten.cumsum'} <= set(counted.elementwise)
    (message,) = (call.args[0] for call in log.call_args_list)  # once
    assert all(name in message for name in expected)


def test_deformable_convolution_counts_its_product_and_names_the_rest() -> None:
    conv, image = ModulatedDeformConv2dPack(4, 8, 3, padding=1).eval(), torch.randn(2, 4, 9, 9)
    counted = count_operations(lambda: conv(image), {})
    assert counted.gflops['total'] == pytest.approx(2 * 2 * 81 * 9 * 4 * (8 + 27) / 1e9)
    assert counted.unknown == ('mmcv._ext.modulated_deform_conv_forward',)


def test_own_operators_are_named() -> None:
    with torch.library._scoped_library('mmprune3d_test', 'FRAGMENT') as library:
        library.define('twice(Tensor x) -> Tensor')
        library.impl('twice', lambda x: x * 2, 'CompositeExplicitAutograd')
        counted = count_operations(lambda: torch.ops.mmprune3d_test.twice(torch.ones(3)), {})
    assert counted.unknown == ('mmprune3d_test.twice',)


def test_peak_memory_counts_what_is_alive_at_the_same_time() -> None:
    def two_of_three_alive() -> Tensor:
        first = torch.ones(1024, 1024)
        second = first + 1
        del first
        return second + 1

    assert peak_memory(two_of_three_alive) == pytest.approx(8, abs=0.1)


def test_stage_times_add_up_to_the_total() -> None:
    model = Attention()
    model.pause.forward = lambda x: (time.sleep(0.02), x)[1]
    times = StageTimer({'project': model.project, 'pause': model.pause}).measure(lambda: model(torch.randn(2, 100, 64)))
    assert times['pause'] >= 20
    assert times['total'] == pytest.approx(times['project'] + times['pause'] + times['rest'])
    assert not model.pause._forward_hooks and not model.pause._forward_pre_hooks


def test_a_stage_inside_another_is_refused() -> None:
    model = Attention()
    with pytest.raises(ValueError, match="stage 'project' lies inside stage 'model'"):
        StageTimer({'model': model, 'project': model.project})


def test_medians() -> None:
    assert medians([{'total': 3.0}, {'total': 100.0}, {'total': 1.0}]) == {'total': 3.0}


def test_a_report_names_what_its_gflops_leave_out() -> None:
    figures = dict(ms={'total': 1.0}, gflops_by_stage={}, gflops=1.0, peak_mib=1.0, queries=None, keys=(3,))
    report = dict(title='t', baseline=figures, upgraded=figures, env={}, samples=dict(timed=1, evaluated=1))
    assert 'Not in the GFLOPs' not in reports.markdown(report)
    report['upgraded'] = figures | dict(not_counted=['mmcv._ext.nms_rotated', 'aten.linalg_inv_ex'])
    line = 'Not in the GFLOPs, like element-wise work: aten.linalg_inv_ex, mmcv._ext.nms_rotated.'
    assert line in reports.markdown(report).splitlines()
