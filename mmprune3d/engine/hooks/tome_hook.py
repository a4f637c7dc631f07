"""ToMe in a config."""

from __future__ import annotations

from mmengine.registry import HOOKS

from mmprune3d.pruning.tome import ToMePlan

from .key_pruning_hook import KeyPruningHook


@HOOKS.register_module()
class ToMeHook(KeyPruningHook):
    """ToMe: merges the keys that are most alike, the method that tgGBC is compared with (paper section 4.3).

    Settings of the plan: see ``ToMePlan``.
    """

    plan_type = ToMePlan
