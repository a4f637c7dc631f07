"""When things are removed: hooks, loops, runners and optimizer wrappers for mmengine."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from mmprune3d.adapters.learned_queries import restore
from mmprune3d.checkpoint.load import PREPARERS

from . import hooks, loops, optimizers, runners
from .apply import prune_as_configured

PREPARERS.append(restore)

__all__ = ['hooks', 'loops', 'optimizers', 'prune_as_configured', 'runners']
