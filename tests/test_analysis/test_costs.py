from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmprune3d.analysis.flops import count_flops
from mmprune3d.analysis.latency import StageTimer, medians
from mmprune3d.analysis.memory import peak_memory


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
