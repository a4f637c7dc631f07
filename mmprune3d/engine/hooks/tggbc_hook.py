"""tgGBC in a config."""

from __future__ import annotations

from mmengine.registry import HOOKS

from mmprune3d.pruning.tggbc import TgGBCPlan

from .key_pruning_hook import KeyPruningHook


@HOOKS.register_module()
class TgGBCHook(KeyPruningHook):
    """tgGBC: prunes the keys at which confident queries look least (paper section 3.3).

    Settings of the plan: see ``TgGBCPlan``.
    """

    plan_type = TgGBCPlan
