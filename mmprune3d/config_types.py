"""What the `type` of a config entry means, however it is written.

mmengine takes a name (``'TgGBCHook'``), a name with a scope (``'mmengine.TgGBCHook'``), a dotted path
(``'mmprune3d.engine.hooks.TgGBCHook'``) or, in pure Python configs, the class itself. Whoever looks for a hook or a
model in a config compares classes, never strings.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.registry import Registry


def class_of(kind: Any, registry: Registry) -> type | None:
    """The class that a `type` stands for.

    Args:
        kind: Of a config entry: a class, or a string in any form that mmengine takes.
        registry: Where names are looked up: it, its parents, and by scope also its relatives.

    Returns:
        The class; None for a function, a name that nobody registered, or no type at all.
    """
    found = registry.get(kind) if isinstance(kind, str) and kind else kind
    return found if inspect.isclass(found) else None


def is_a(entry: Any, wanted: str | type, registry: Registry) -> bool:
    """Whether a config entry builds a `wanted` or a subclass of it.

    Args:
        entry: A config with a `type`, a `type` alone, or an object that was built already.
        wanted: A class, or a name that is registered in `registry`.
        registry: See `class_of`.
    """
    goal = class_of(wanted, registry)
    if goal is None:
        raise KeyError(f'{wanted!r} is not in the {registry.name} registry')
    kind = entry.get('type') if isinstance(entry, Mapping) else entry
    found = class_of(kind, registry)
    if found is None and not isinstance(kind, str):
        return isinstance(kind, goal)
    return found is not None and issubclass(found, goal)


def only(entries: Iterable[Any] | None, wanted: str | type, registry: Registry) -> list[Any]:
    """The entries that build a `wanted`; None, as in ``custom_hooks = None``, is an empty list."""
    return [entry for entry in entries or () if is_a(entry, wanted, registry)]


def without(entries: Iterable[Any] | None, wanted: str | type, registry: Registry) -> list[Any]:
    """The entries that do not build a `wanted`; None is an empty list."""
    return [entry for entry in entries or () if not is_a(entry, wanted, registry)]
