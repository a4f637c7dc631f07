"""A check for hooks of which a runner can have only one."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner


def check_single(runner: Runner, kind: type[Hook], what: str) -> None:
    """Refuses a second hook of a kind before the first batch; two would undo each other's work.

    Args:
        runner: The runner, with all of its hooks.
        kind: The class that the hooks have in common.
        what: What each of the hooks does, in words, for the message.

    Raises:
        ValueError: If there are several; the message names them.
    """
    found = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, kind)]
    if len(found) > 1:
        raise ValueError(
            f'{len(found)} hooks of the config {what}: {", ".join(found)}. There can be one: leave the others out of '
            'custom_hooks (which a config inherits from its _base_ unless it sets them itself)'
        )
