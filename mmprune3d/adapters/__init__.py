"""Adapters, which apply key-pruning plans to models written by others.

An adapter supports one family of models (see `Family`); the functions here choose the family. Attaching twice is the
same as attaching once; detaching restores the model exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmprune3d.layers.key_pruning import KeyRecord
from mmprune3d.pruning.key_plan import KeyPlan

from . import petr
from .mmdet_detr import HookedConditionalDETR, HookedDETR
from .projects_petr import HookedPETR


class Family(Protocol):
    """Interface of an adapter: a module with these functions, or a class with these class methods.

    Attributes:
        LOOKS_FOR: Description of what `find` looks for, for messages.
        STAGES: Stage -> attribute of the model that contains it, for tables of times; the decoder need not be listed.
    """

    LOOKS_FOR: str
    STAGES: Mapping[str, str]

    def find(self, model: nn.Module) -> nn.Module | None:
        """Finds the decoder whose keys can be pruned; returns None if the model is of another family."""

    def attach(self, model: nn.Module, plan: KeyPlan) -> None:
        """Makes the model prune from its next forward pass on; a plan that was attached before is replaced.

        Raises:
            ValueError: If the plan does not match the model; the model is then not changed.
        """

    def detach(self, model: nn.Module) -> None:
        """Restores the model to its state before `attach`, bit for bit; has no effect if no plan is attached."""

    def is_attached(self, model: nn.Module) -> bool:
        """Returns whether a plan is attached."""

    def has_pruned(self, model: nn.Module) -> bool:
        """Returns whether any key was removed since `attach`."""

    def record_keys(self, model: nn.Module, call: Callable[[], object]) -> KeyRecord:
        """The keys that each decoder layer attends to during `call`, with or without a plan attached."""


FAMILIES: list[Family] = [petr, HookedDETR, HookedConditionalDETR, HookedPETR]


def register(family: Family) -> None:
    """Adds a family of models, which is tried before those that were registered earlier."""
    FAMILIES.insert(0, family)


def family_of(model: nn.Module) -> Family:
    """Finds the adapter that supports `model`.

    Raises:
        ValueError: If there is none; the message says what each adapter looks for.
    """
    for family in FAMILIES:
        if family.find(model) is not None:
            return family
    known = '; '.join(family.LOOKS_FOR for family in FAMILIES)
    raise ValueError(f'{type(model).__name__} has nothing that can be pruned. Looked for: {known}')


def attach(model: nn.Module, plan: KeyPlan) -> None:
    """Makes `model` prune by `plan` from its next forward pass on; a plan that was attached before is replaced."""
    family_of(model).attach(model, plan)


def detach(model: nn.Module) -> None:
    """Restores `model` to its state before `attach`, bit for bit."""
    family_of(model).detach(model)


def is_attached(model: nn.Module) -> bool:
    """Returns whether a plan is attached to `model`."""
    return family_of(model).is_attached(model)


def check_pruned(model: nn.Module, plan: KeyPlan) -> None:
    """Raises RuntimeError if a plan that should remove keys has removed nothing since it was attached."""
    if plan.removes and not family_of(model).has_pruned(model):
        raise RuntimeError(
            f'{plan.title}: nothing was pruned. Either the decoder with the plan never ran, or no forward pass '
            f'had more keys than the threshold of {plan}'
        )


def check_in_passing(model: nn.Module, plan: KeyPlan) -> RemovableHandle | None:
    """Checks in every forward pass of `model` that a plan leaves keys; the model is not changed otherwise.

    The number of keys is known only from data. With this check a training that prunes later, or only in validation,
    stops in its first iteration if a plan removes too many keys.

    Args:
        model: Model with or without an attached plan.
        plan: Plan to check; a forward pass in which it would leave no key raises ValueError.

    Returns:
        A handle whose ``remove()`` ends the check; None for families without such a check.
    """
    family = family_of(model)
    if not hasattr(family, 'hear_keys'):
        return None
    layers = len(family.find(model).layers)
    return family.hear_keys(model, lambda keys: plan.removals(layers, keys))


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """Disjoint parts of `model` for tables of times and FLOPs: backbone, neck, encoder, decoder, if they exist."""
    family = family_of(model)
    found = {name: getattr(model, attribute, None) for name, attribute in family.STAGES.items()}
    return {**{name: module for name, module in found.items() if module is not None}, 'decoder': family.find(model)}


def record_keys(model: nn.Module, call: Callable[[], object]) -> KeyRecord:
    """Original ids of the keys that each decoder layer attends to during `call`, and the layers that got others."""
    return family_of(model).record_keys(model, call)


def kept_keys(model: nn.Module, call: Callable[[], object]) -> list[Tensor]:
    """Original ids [B, keys] of the keys that each decoder layer attends to during `call`, a forward pass."""
    return record_keys(model, call).kept


def keys_per_layer(model: nn.Module, call: Callable[[], object]) -> list[int]:
    """Number of keys that each decoder layer attends to during `call`, a forward pass."""
    return [ids.shape[1] for ids in kept_keys(model, call)]
