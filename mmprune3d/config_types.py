"""Resolution of the `type` of a config entry, in all forms that mmengine accepts.

mmengine accepts a name (``'TgGBCHook'``), a name with a scope (``'mmengine.TgGBCHook'``), a dotted path
(``'mmprune3d.engine.hooks.TgGBCHook'``) or, in pure Python configs, the class itself. Code that looks for a hook or a
model in a config therefore compares classes, never strings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The functions import it themselves: the first import of mmengine imports most of this package, this file included.
    from mmengine.config import Config
    from mmengine.registry import Registry


def resolved(kind: Any, registry: Registry) -> Any:
    """Resolves a `type` to a class or a function that builds; None if the name is not registered, or there is no type.

    Args:
        kind: `type` of a config entry: a class, a function, or a string in any form that mmengine accepts.
        registry: Registry of the names; its parents and, by scope, related registries are searched too.
    """
    return registry.get(kind) if isinstance(kind, str) and kind else kind


def class_of(kind: Any, registry: Registry) -> type | None:
    """Resolves a `type` to a class; None if it is not a class. See `resolved`."""
    found = resolved(kind, registry)
    return found if inspect.isclass(found) else None


def dotted(kind: Any) -> Any:
    """Converts a class or function to its importable name, such as ``'mmengine.hooks.ema_hook.EMAHook'``.

    Args:
        kind: A `type` in any form; strings and other values are returned as they are.
    """
    return f'{kind.__module__}.{kind.__qualname__}' if inspect.isclass(kind) or inspect.isfunction(kind) else kind


def is_a(entry: Any, wanted: str | type, registry: Registry) -> bool:
    """Whether a config entry builds an instance of `wanted` or of a subclass of it.

    Args:
        entry: A config with a `type`, a `type` alone, or an object that is built already.
        wanted: A class, or a name that is registered in `registry`, possibly that of a function.
        registry: Registry of the names; see `resolved`.

    Raises:
        KeyError: If `wanted` is not registered.
    """
    goal = resolved(wanted, registry)
    if goal is None:
        raise KeyError(f'{wanted!r} is not in the {registry.name} registry')
    kind = entry.get('type') if isinstance(entry, Mapping) else entry
    found = resolved(kind, registry)
    if not inspect.isclass(goal):
        return found is goal
    return issubclass(found, goal) if inspect.isclass(found) else isinstance(found, goal)


def only(entries: Iterable[Any] | None, wanted: str | type, registry: Registry) -> list[Any]:
    """Selects the entries that build a `wanted`; None, as in ``custom_hooks = None``, gives an empty list."""
    return [entry for entry in entries or () if is_a(entry, wanted, registry)]


def without(entries: Iterable[Any] | None, wanted: str | type, registry: Registry) -> list[Any]:
    """Selects the entries that do not build a `wanted`; None gives an empty list."""
    return [entry for entry in entries or () if not is_a(entry, wanted, registry)]


def writable(config: Config) -> Config:
    """Copies a config so that it can be written and read again: classes and functions become importable names.

    mmengine 0.10 does this for classes that a pure Python config imports, but not for classes that were put into a
    config, or taken out and put in again: of those it writes ``<class ...>``, which is not valid Python.
    """
    from mmengine.config import Config

    return Config(_named(config.to_dict()), filename=config.filename)


def movable(config: Config, folder: Path, *names: str) -> Config:
    """Copies a config, to be written into `folder`, so that it finds files of this folder from any working directory.

    The paths of the files, wherever they are in the config, become ``{{ fileDirname }}/NAME``, which mmengine replaces
    by the folder of the config file: the folder can be moved.

    Args:
        config: Config that refers to the files as ``str(folder / name)``.
        folder: Folder of the config file.
        names: Names of the files.
    """
    from mmengine.config import Config

    places = {str(folder / name): f'{{{{ fileDirname }}}}/{name}' for name in names}

    def moved(value: Any) -> Any:
        return places.get(value, value) if isinstance(value, str) else value

    return Config(_changed(config.to_dict(), moved), filename=config.filename)


def _named(part: Any) -> Any:
    return _changed(part, dotted)


def _changed(part: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(part, Mapping):
        return {name: _changed(value, change) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_changed(value, change) for value in part)
    return change(part)
