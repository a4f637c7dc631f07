"""mmprune3d: faster 3D detectors for the mmdetection3d 1.x ecosystem.

``custom_imports = dict(imports=['mmprune3d'])`` in a config is all that is needed. Importing the package alone imports
none of the packages around it; as soon as mmengine is imported too, before or after, their versions are checked,
checkpoints load safely and strictly, trainings resume, and every class is registered (:mod:`mmprune3d.registration`).
"""

from __future__ import annotations

import importlib
from typing import Any

from .registration import register, register_with_mmengine
from .version import __version__

_LAZY = {name: name for name in ('adapters', 'engine', 'evaluation', 'models')} | {'transforms': 'datasets.transforms'}
_FUNCTIONS = {'prune': 'upgrade.prune', 'unprune': 'upgrade.prune'}

__all__ = ['__version__', 'adapters', 'engine', 'evaluation', 'models', 'prune', 'register', 'transforms', 'unprune']

register_with_mmengine()


def __getattr__(name: str) -> Any:
    """The subpackages and functions that are named in ``__all__``, imported when they are asked for."""
    if name in _LAZY:
        return importlib.import_module(f'mmprune3d.{_LAZY[name]}')
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f'mmprune3d.{_FUNCTIONS[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
