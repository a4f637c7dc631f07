"""The benchmark of removed channels: its figures are those of the models that it times."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config

from experiments.altermoma.benchmark import ROWS, markdown, measure, probing_config, summarized
from experiments.models import CONFIGS, build
from mmprune3d.measure.layer_costs import LayerCosts


def test_the_slim_model_has_the_flops_that_were_asked_for() -> None:
    result = measure('tiny', 1, shares=(0.3,), cameras=1, round_to=1)
    dense, slim = result['variants']['dense'], result['variants']['-30.0 %']
    assert slim['saved']['gflops'] == pytest.approx(0.3, abs=0.01)
    for part in ('camera', 'bev'):
        assert 0 < slim['gflops'][part] < dense['gflops'][part]
        assert min(slim['ms'][part], dense['ms'][part]) > 0
    assert dense['gflops']['total'] == pytest.approx(dense['gflops']['camera'] + dense['gflops']['bev'], rel=0.02)
    assert '| tiny | -30.0 % |' in markdown([result])


@pytest.mark.parametrize('row', ROWS)
def test_coupled_channels_are_looked_for_in_a_model_of_the_same_widths(row: str) -> None:
    config = Config.fromfile(CONFIGS / ROWS[row]).model
    before = copy.deepcopy(config)
    small = probing_config(config)
    assert config == before
    if row == 'tiny':  # the full-size one takes seconds to build
        sizes = {name: p.shape for name, p in build(config).named_parameters() if p.requires_grad}
        assert {name: p.shape for name, p in build(small).named_parameters() if p.requires_grad} == sizes
    assert small.pts_middle_encoder.sparse_shape[0] < config.pts_middle_encoder.sparse_shape[0]


def test_ratios_are_of_medians() -> None:
    shapes = {'img_backbone.conv.weight': (1, 1), 'fusion_layer.0.weight': (1, 1)}
    costs = {
        'dense': LayerCosts(dict.fromkeys(shapes, 4e9), shapes),
        'half': LayerCosts(dict.fromkeys(shapes, 2e9), shapes),
    }
    times = {
        'dense': [{'camera': ms, 'bev': 10.0} for ms in (30.0, 31.0, 90.0)],
        'half': [{'camera': ms, 'bev': 9.0} for ms in (15.0, 16.6, 16.0)],
    }
    figures = summarized(costs, times)
    assert figures['dense']['ms']['total'] == 41.0
    assert figures['half']['saved'] == pytest.approx({'gflops': 0.5, 'ms': 16 / 41, 'ratio': 32 / 41})
    assert torch.tensor(figures['dense']['gflops']['total']) == 8.0
