"""tgGBC as three lines in a config."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmprune3d import adapters
from mmprune3d.pruning.plan import TgGBCPlan


@HOOKS.register_module()
class TgGBCHook(Hook):
    """Prunes cross-attention keys while a model is validated or tested; training runs unpruned.

    The keys are trimmed at run time from the weights as they are (paper section 3.3). What attaches where is the
    adapter's business; this hook only says when: from the start of each validation or test epoch to its end.

    Args:
        **plan: The settings of `TgGBCPlan`: r, n, k, activation.

    Raises:
        ValueError: For unknown settings, for a model without a decoder that an adapter knows, for r and n that do not
            fit the decoder, and when an epoch ends in which nothing was pruned.
    """

    priority = 'LOW'

    def __init__(self, **plan: Any) -> None:
        self.plan = TgGBCPlan.from_dict(plan)

    def before_val_epoch(self, runner: Runner) -> None:
        """Attaches the plan."""
        adapters.attach(_unwrap(runner.model), self.plan)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        model = _unwrap(runner.model)
        adapters.check_pruned(model, self.plan)
        adapters.detach(model)

    def before_test_epoch(self, runner: Runner) -> None:
        """Attaches the plan."""
        self.before_val_epoch(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Checks that keys were pruned, then detaches."""
        self.after_val_epoch(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The plan travels with the checkpoint."""
        checkpoint['meta'].setdefault('mmprune3d', {})[self.plan.method] = self.plan.to_dict()


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
