"""Adapter for the PETR of this package, whose decoder has an attribute for a key pruner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from mmprune3d.layers.attention import most_valid
from mmprune3d.layers.key_pruning import KeyRecord, make_pruner
from mmprune3d.pruning.key_plan import KeyPlan
from mmprune3d.pruning.tggbc import TgGBCPlan

LOOKS_FOR = 'a decoder with `layers`, `post_norm` and `key_pruner` (PETR3DDecoder), as in our PETR'
STAGES = {'backbone': 'img_backbone', 'neck': 'img_neck'}


def find(model: nn.Module) -> nn.Module | None:
    """Finds the decoder whose keys can be pruned; None if the model is of another family."""
    return next((module for module in model.modules() if hasattr(module, 'key_pruner')), None)


def attach(model: nn.Module, plan: KeyPlan) -> None:
    """Makes the decoder prune by `plan`.

    Raises:
        ValueError: If the plan does not match the decoder, or if the model already prunes by its own config.
    """
    decoder = find(model)
    if decoder.key_pruner is not None and not is_attached(model):
        raise ValueError(f'the config of the model already sets {decoder.key_pruner.plan}: remove it there first')
    decoder.key_pruner = make_pruner(plan, len(decoder.layers))
    decoder.pruner_attached = True


def detach(model: nn.Module) -> None:
    """Removes the pruner; the decoder is then as it was before `attach`."""
    if is_attached(model):
        decoder = find(model)
        decoder.key_pruner = None
        del decoder.pruner_attached


def is_attached(model: nn.Module) -> bool:
    """Returns whether the decoder got its pruner from `attach`."""
    return getattr(find(model), 'pruner_attached', False)


def has_pruned(model: nn.Module) -> bool:
    """Returns whether any key was removed since `attach`."""
    return find(model).key_pruner.has_pruned


def hear_keys(model: nn.Module, heard: Callable[[int], None]) -> RemovableHandle:
    """Calls `heard` with the largest number of valid keys of a sample, in each forward pass."""

    def before(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        heard(most_valid(args[1] if len(args) > 1 else kwargs['keys']))

    return find(model).register_forward_pre_hook(before, with_kwargs=True)


def record_keys(model: nn.Module, call: Callable[[], object]) -> KeyRecord:
    """The keys that each decoder layer attends to during `call`, with or without a pruner attached."""
    decoder = find(model)
    before = decoder.key_pruner
    recorder = make_pruner(before.plan if before else TgGBCPlan(r=0), len(decoder.layers), record=True)
    decoder.key_pruner = recorder
    try:
        call()
    finally:
        decoder.key_pruner = before
    return recorder.recorded
