"""Pruning of a model in memory, for methods that need no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmprune3d.pruning import checks
from mmprune3d.pruning.plans import plan_from_dict
from mmprune3d.pruning.settings import Plan

from . import methods


def prune(model: nn.Module, plan: Plan | Mapping[str, Any]) -> nn.Module:
    """Makes a detector prune by a plan from its next forward pass on; no weight changes and nothing is trained.

    ::

        model = init_model(config, checkpoint)
        mmprune3d.prune(model, TgGBCPlan(r=12000))

    Args:
        model: A detector.
        plan: A plan, or its settings as ``Plan.to_dict`` writes them. A plan that was attached before is replaced.

    Returns:
        `model`, which prunes now; `unprune` makes it what it was.

    Raises:
        ValueError: If the method makes another model or needs training, with the command that does so; if no adapter
            knows the model; if the plan does not fit; or if `model` is no model or `plan` no plan.
    """
    _at_run_time(_plan(plan)).attach(_module(model))
    return model


def unprune(model: nn.Module, plan: Plan | Mapping[str, Any]) -> nn.Module:
    """Makes a model what it was before `prune`, bit for bit.

    Args:
        model: A detector; nothing happens if nothing is attached to it.
        plan: What was given to `prune`.

    Returns:
        `model`.

    Raises:
        ValueError: If the method is not one that `prune` takes, no adapter knows the model, or `model` is no model or
            `plan` no plan.
    """
    _at_run_time(_plan(plan)).detach(_module(model))
    return model


def _module(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f'{checks.shown(model)} is a {type(model).__name__}, not a detector: valid is a model, such as '
            'init_model(config, checkpoint) returns'
        )
    return model


def _plan(plan: Plan | Mapping[str, Any]) -> Plan:
    if isinstance(plan, Mapping):
        return plan_from_dict(plan)
    if not isinstance(plan, Plan):
        raise ValueError(
            f'{checks.shown(plan)} is not a plan: valid is one plan, such as TgGBCPlan(r=12000), or its settings, such '
            "as dict(method='tggbc', r=12000)"
        )
    return plan


def _at_run_time(plan: Plan) -> Any:
    method = methods.get(plan.method)
    if not method.step_type.at_run_time:
        needs = f'it needs training ({method.training})' if method.training else 'it makes another model'
        raise ValueError(
            f'{plan.title} cannot be attached to a model: {needs}. Make a pruned checkpoint with: {method.command()}'
        )
    return methods.step_for(plan)
