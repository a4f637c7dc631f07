"""A detector that draws from every generator and keeps notes while it runs is the same after it was looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmprune3d.adapters.fusion import FusionMap, fusion_map
from mmprune3d.adapters.modality_masking import masked
from mmprune3d.coupling.groups import find_channel_groups
from mmprune3d.engine.channel_scoring import choose_channels, score_channels, trained_groups
from mmprune3d.engine.criteria import modality_gradients, score_model
from mmprune3d.engine.recalibration import recalibrate
from mmprune3d.pruning.altermoma import AlterMOMAPlan
from tests.kills import assert_same

from .small_fusion import GROUPS, INTERFACES, SmallFusion, batches

DATA = batches(4)
SETTINGS = dict(sparsity=0.5, eval_batches=2, reactivation_steps=2)


class Drawing(SmallFusion):
    """Augments its features with numbers of Python, NumPy and torch, as detectors do with images and masks of them."""

    drawn = 0

    def fused(self, inputs: dict[str, Any]) -> Tensor:
        self.drawn = self.drawn + 1
        self.last_inputs = inputs
        noise = random.random() + np.random.rand() + float(torch.rand(())) if self.training else 1.0
        random.random(), np.random.rand(), torch.rand(())
        return super().fused(inputs) * noise


def states(model: Drawing) -> dict[str, Any]:
    return dict(
        tensors={name: (id(t), t.detach().clone()) for name, t in (*model.named_parameters(), *model.named_buffers())},
        wanted=[p.requires_grad for p in model.parameters()],
        gradients=[None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        attributes=[{name: id(value) for name, value in vars(module).items()} for module in model.modules()],
        modes=[module.training for module in model.modules()],
        python=random.getstate(),
        numpy=np.random.get_state()[1].tolist(),
        torch=torch.get_rng_state(),
    )


def weights_by(criterion: str, model: Drawing, fusion: FusionMap) -> None:
    score_model(model, AlterMOMAPlan(criterion=criterion, **rounds(criterion)), DATA, fusion)


def channels_by(criterion: str, model: Drawing, fusion: FusionMap) -> None:
    plan = AlterMOMAPlan(criterion=criterion, mode='channels', **rounds(criterion))
    found = find_channel_groups(model, lambda model: model(**DATA[0], mode='tensor'))
    groups, _ = trained_groups(model, found.groups)
    choose = partial(choose_channels, groups=groups, plan=plan, tolerance=1.0)
    score_channels(model, plan, DATA, fusion, groups, lambda scores, share: choose(scores, share=share))


def rounds(criterion: str) -> dict[str, Any]:
    return dict(SETTINGS, rounds=3) if criterion == 'synflow' else SETTINGS


def gradients_of_modalities(model: Drawing, fusion: FusionMap) -> None:
    found = modality_gradients(model, AlterMOMAPlan(**SETTINGS), DATA, fusion, dict(model.named_parameters()))
    again = modality_gradients(model, AlterMOMAPlan(**SETTINGS), DATA, fusion, dict(model.named_parameters()))
    assert_same(again.unmasked.values, found.unmasked.values, 'gradients')


def masked_run(model: Drawing, fusion: FusionMap) -> None:
    """The shape of what is replaced by zeros is learned from a run of the stream."""
    with masked(model, 'camera', fusion):
        model.extract_img_feat({'img': torch.stack(DATA[0]['inputs']['img'])})


def channel_search(model: Drawing, fusion: FusionMap) -> None:
    find_channel_groups(model, lambda model: model(**DATA[0], mode='tensor'))


USES: dict[str, Callable[[Drawing, FusionMap], None]] = {
    **{f'weights by {c}': partial(weights_by, c) for c in AlterMOMAPlan.criteria},
    **{f'channels by {c}': partial(channels_by, c) for c in AlterMOMAPlan.criteria},
    'gradients of modalities': gradients_of_modalities,
    'a masked run': masked_run,
    'the search for channels': channel_search,
}


def prepared() -> tuple[Drawing, FusionMap]:
    """With one stream in evaluation mode, a frozen weight and a gradient."""
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    model = Drawing(dropout=0.3)
    model.bbox_head.weight.sum().backward()
    model.img_backbone.eval()
    model.img_backbone[0].weight.requires_grad_(False)
    return model, fusion_map(model, GROUPS, INTERFACES, head='bbox_head')


@pytest.mark.parametrize('use', USES)
def test_nothing_is_left_behind(use):
    model, fusion = prepared()
    before = states(model)
    USES[use](model, fusion)
    assert_same(states(model), before, use)


def test_recalibration_changes_statistics_only():
    model, _ = prepared()
    before = states(model)
    assert recalibrate(model, DATA) == 3
    after = states(model)
    changed = {
        name for name, (_, value) in after['tensors'].items() if not torch.equal(value, before['tensors'][name][1])
    }
    assert changed == {name for name, _ in model.named_buffers()} and changed
    del before['tensors'], after['tensors']
    assert_same(after, before, 'recalibration')
    with pytest.raises(TypeError):
        recalibrate(model, [*DATA, {}])
    interrupted = states(model)
    del interrupted['tensors']
    assert_same(interrupted, before, 'an interrupted recalibration')
