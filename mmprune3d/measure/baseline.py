"""Checks that a baseline is the unpruned detector, whatever could prune it: hooks, attached plans, the model itself."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmprune3d import adapters
from mmprune3d.engine.unwrap import unwrap


def prunes(model: nn.Module) -> bool:
    """Whether keys of `model` are pruned when it runs, by an attached plan or by a setting of its own."""
    model = unwrap(model)
    try:
        family = adapters.family_of(model)
    except ValueError:  # no decoder that we know
        return False
    return family.is_attached(model) or getattr(family.find(model), 'key_pruner', None) is not None


def check_baseline(runner: Runner) -> None:
    """Refuses to measure a baseline that is pruned.

    Args:
        runner: Built from the config of the baseline; its model is the baseline.

    Raises:
        ValueError: If a hook of the runner prunes, or something is attached to its model, or the model prunes itself.
    """
    check_hooks(runner)
    if prunes(runner.model):
        raise ValueError(
            'the baseline is pruned: keys of its model are removed, by an attached plan or by `tggbc` in its config; '
            'give the unpruned detector'
        )


def check_hooks(runner: Runner) -> None:
    """Refuses a runner whose hooks prune in a test: they would prune the baseline and change what it is compared with.

    Raises:
        ValueError: If there is a hook whose attribute ``prunes_tests`` is true: one that prunes keys, or a MaskHook
            with masks from a file. GPQHook and a MaskHook without masks of its own change nothing in a test: the
            checkpoint is as it is.
    """
    active = [hook for hook in runner.hooks if getattr(hook, 'prunes_tests', False)]
    if active:
        names = ', '.join(type(hook).__name__ for hook in active)
        raise ValueError(f'the baseline would be pruned by hooks of its runner ({names}): give the unpruned detector')


class UnchangedHook(Hook):
    """Notices when a hook of any other class attaches or detaches a plan in a test."""

    # after all others
    priority = 'LOWEST'

    def __init__(self, model: nn.Module) -> None:
        self.before = prunes(model)

    def before_test_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Compares the model with what it was before the test.

        Raises:
            ValueError: Before the first batch, if the model prunes now and did not before, or the other way round.
        """
        if prunes(runner.model) != self.before:
            what = 'removes the plan from' if self.before else 'prunes'
            raise ValueError(f'a hook of the config {what} the model that is measured: leave it out of custom_hooks')
