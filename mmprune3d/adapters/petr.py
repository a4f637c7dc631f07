"""PETR-like detectors: a head whose transformer has a decoder with a place for a key pruner."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mmprune3d.layers.key_pruning import TgGBCKeyPruner
from mmprune3d.pruning.plan import TgGBCPlan

LOOKS_FOR = 'a decoder with `layers`, `post_norm` and `key_pruner` (PETR3DDecoder), as in our PETR'
STAGES = {'backbone': 'img_backbone', 'neck': 'img_neck'}


def find(model: nn.Module) -> nn.Module | None:
    """The decoder whose keys can be pruned, or None."""
    return next((module for module in model.modules() if hasattr(module, 'key_pruner')), None)


def attach(model: nn.Module, plan: TgGBCPlan) -> None:
    """Makes the decoder prune by `plan`.

    Raises:
        ValueError: If `plan.n` does not fit the decoder.
    """
    decoder = find(model)
    decoder.key_pruner = TgGBCKeyPruner(plan, len(decoder.layers))


def detach(model: nn.Module) -> None:
    """Takes the pruner off; the decoder is then what it was."""
    find(model).key_pruner = None


def is_attached(model: nn.Module) -> bool:
    """Whether the decoder has a pruner."""
    return find(model).key_pruner is not None


def check_pruned(model: nn.Module, plan: TgGBCPlan) -> None:
    """Raises RuntimeError if `plan` removes keys and none was removed since it was attached."""
    decoder = find(model)
    pruned = decoder.key_pruner is not None and decoder.key_pruner.times_pruned
    if any(plan.removals(len(decoder.layers))) and not pruned:
        raise RuntimeError('tgGBC: nothing was pruned; the decoder that was attached to never ran')


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """Image backbone, neck and decoder, as far as the model has them."""
    found = {name: getattr(model, attribute, None) for name, attribute in STAGES.items()}
    return {**{name: module for name, module in found.items() if module is not None}, 'decoder': find(model)}


def kept_keys(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """Original ids [B, keys] that each decoder layer attends to during `call`, with or without a pruner attached."""
    decoder = find(model)
    attached = decoder.key_pruner
    recorder = TgGBCKeyPruner(attached.plan if attached else TgGBCPlan(r=0), len(decoder.layers), record=True)
    decoder.key_pruner = recorder
    try:
        call()
    finally:
        decoder.key_pruner = attached
    return recorder.kept
