"""Hooks whose arguments are the settings of a plan, written out in their signatures for ``help()`` and editors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from mmprune3d.pruning.settings import Plan, names


def takes_settings_of(plan: type[Plan]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates the ``__init__`` of a hook that has the settings of `plan`, and perhaps others, as its arguments.

    A misspelt or a missing setting of a config then ends with the ValueError of the plan, which lists what is valid,
    and not with a TypeError of Python, which does not.

    Args:
        plan: The plan; its settings must be arguments of the hook, with the same defaults.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        arguments = list(inspect.signature(init).parameters)[1:]
        others = [name for name in arguments if name not in names(plan)]

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            by_position = dict(zip(arguments, args))
            settings = plan.known({**by_position, **given}, others)
            settings = {name: value for name, value in settings.items() if name not in by_position}
            init(self, *args, **settings)

        return checked

    return decorate
