"""Where a plan goes in models written by others.

An adapter is a module with `find(model)`, `attach(model, plan)`, `detach(model)` and the like for one family of
models; the functions here choose the family. Attaching twice is the same as attaching once, detaching leaves the model
as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from mmprune3d.pruning.plan import KeyPlan

from . import petr

FAMILIES: tuple[ModuleType, ...] = (petr,)


def family_of(model: nn.Module) -> ModuleType:
    """The adapter that knows `model`.

    Raises:
        ValueError: If none does; the message says what each one looks for.
    """
    for family in FAMILIES:
        if family.find(model) is not None:
            return family
    known = '; '.join(family.LOOKS_FOR for family in FAMILIES)
    raise ValueError(f'{type(model).__name__} has nothing that can be pruned. Looked for: {known}')


def attach(model: nn.Module, plan: KeyPlan) -> None:
    """Makes `model` prune by `plan` from its next forward pass on; a plan attached before is replaced."""
    family_of(model).attach(model, plan)


def detach(model: nn.Module) -> None:
    """Makes `model` what it was before `attach`."""
    family_of(model).detach(model)


def is_attached(model: nn.Module) -> bool:
    """Whether a plan is attached to `model`."""
    return family_of(model).is_attached(model)


def check_pruned(model: nn.Module, plan: KeyPlan) -> None:
    """Raises RuntimeError if a plan that removes something has removed nothing since it was attached."""
    if plan.removes and not family_of(model).has_pruned(model):
        raise RuntimeError(
            f'{plan.title}: nothing was pruned. Either the decoder that was attached to never ran, or no forward pass '
            f'had more keys than the threshold of {plan}'
        )


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """Disjoint parts of `model` for time and FLOP tables: backbone, neck, decoder."""
    return family_of(model).stages(model)


def kept_keys(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """Original ids [B, keys] of the keys that each decoder layer attends to during `call`, a forward pass."""
    return family_of(model).kept_keys(model, call)


def keys_per_layer(model: nn.Module, call: Callable[[], object]) -> list[int]:
    """How many keys each decoder layer attends to during `call`."""
    return [ids.shape[1] for ids in kept_keys(model, call)]
