"""Pruning without a runner: for models made by ``init_model`` or by an inferencer, which build no hooks."""

from __future__ import annotations

from mmengine.registry import HOOKS
from torch import nn

from mmprune3d import adapters
from mmprune3d.config_types import only
from mmprune3d.engine.hooks.key_pruning_hook import KeyPruningHook
from mmprune3d.pruning.key_plan import KeyPlan


def prune_as_configured(model: nn.Module) -> KeyPlan:
    """Attaches the plan of the pruning hook in ``model.cfg.custom_hooks`` to a model.

    Args:
        model: A model that has its config in ``cfg``, as after ``init_model`` of mmdet or mmdet3d, or the attribute
            ``model`` of an inferencer.

    Returns:
        The plan, now attached; ``adapters.detach(model)`` takes it off.

    Raises:
        ValueError: If the config has no pruning hook or several, or if the plan does not fit the model.
    """
    found = only(getattr(model, 'cfg', {}).get('custom_hooks'), KeyPruningHook, HOOKS)
    if len(found) != 1:
        raise ValueError(
            f"expected one pruning hook in custom_hooks of the model's config, found {len(found)}; "
            "write custom_hooks = [dict(type='TgGBCHook', r=...)], or use adapters.attach(model, plan)"
        )
    plan = HOOKS.build(found[0]).plan
    adapters.attach(model, plan)
    return plan
