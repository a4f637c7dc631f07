"""Arguments of hooks and loops: those of a config are checked by name, and a message lists the valid ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from mmprune3d.pruning import checks
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


def names_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Decorates the ``__init__`` of a hook: an unknown or a missing argument is a ValueError that lists the valid ones.

    Python's own TypeError names only the unknown one.
    """
    signature = inspect.signature(init)
    arguments = list(signature.parameters.values())[1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        where = type(self).__name__
        checks.settings(where, given, [one.name for one in arguments], f'dict(type={where!r})')
        for one in arguments[len(args) :]:
            if one.default is one.empty and one.name not in given:
                raise ValueError(f'{where}: {one.name} is missing')
        init(self, *args, **given)

    return checked
