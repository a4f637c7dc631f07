"""Where a plan goes in models written by others.

An adapter knows one family of models (see `Family`); the functions here choose the family. Attaching twice is the same
as attaching once, detaching leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmprune3d.pruning.key_plan import KeyPlan

from . import petr
from .mmdet_detr import HookedConditionalDETR, HookedDETR
from .projects_petr import HookedPETR


class Family(Protocol):
    """What an adapter provides: a module with these functions, or a class with these class methods.

    Attributes:
        LOOKS_FOR: What `find` looks for, in words.
        STAGES: Stage -> attribute of the model that holds it, for tables of times; the decoder is known anyway.
    """

    LOOKS_FOR: str
    STAGES: Mapping[str, str]

    def find(self, model: nn.Module) -> nn.Module | None:
        """The decoder whose keys can be pruned, or None if the model is of another family."""

    def attach(self, model: nn.Module, plan: KeyPlan) -> None:
        """Makes the model prune from its next forward pass on; a plan attached before is replaced.

        Raises:
            ValueError: If the plan does not fit; the model is then as it was.
        """

    def detach(self, model: nn.Module) -> None:
        """Makes the model what it was before `attach`, bit for bit; nothing where no plan is attached."""

    def is_attached(self, model: nn.Module) -> bool:
        """Whether a plan is attached."""

    def has_pruned(self, model: nn.Module) -> bool:
        """Whether anything was removed since `attach`."""

    def kept_keys(self, model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
        """Original ids [B, keys] that each decoder layer attends to during `call`, with or without a plan attached."""


FAMILIES: list[Family] = [petr, HookedDETR, HookedConditionalDETR, HookedPETR]


def register(family: Family) -> None:
    """Makes `attach` and the others know a family of models, before those that they know already."""
    FAMILIES.insert(0, family)


def family_of(model: nn.Module) -> Family:
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


def check_in_passing(model: nn.Module, plan: KeyPlan) -> RemovableHandle | None:
    """Compares the number of keys in every forward pass of `model` with a plan; nothing else changes.

    How many keys there are is known from data only. With this check, a training that prunes later, or only in
    validation, stops in its first iteration if a plan asks for too many.

    Args:
        model: It may have a plan attached, or none.
        plan: A forward pass raises ValueError if the plan leaves it no key.

    Returns:
        A handle whose ``remove()`` ends the check; None for families without such a check.
    """
    family = family_of(model)
    if not hasattr(family, 'hear_keys'):
        return None
    layers = len(family.find(model).layers)
    return family.hear_keys(model, lambda keys: plan.removals(layers, keys))


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """Disjoint parts of `model` for time and FLOP tables: backbone, neck, encoder, decoder, as far as it has them."""
    family = family_of(model)
    found = {name: getattr(model, attribute, None) for name, attribute in family.STAGES.items()}
    return {**{name: module for name, module in found.items() if module is not None}, 'decoder': family.find(model)}


def kept_keys(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """Original ids [B, keys] of the keys that each decoder layer attends to during `call`, a forward pass."""
    return family_of(model).kept_keys(model, call)


def keys_per_layer(model: nn.Module, call: Callable[[], object]) -> list[int]:
    """How many keys each decoder layer attends to during `call`."""
    return [ids.shape[1] for ids in kept_keys(model, call)]
