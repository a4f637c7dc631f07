"""When things are removed: hooks, loops, runners and optimizer wrappers for mmengine."""

from . import hooks, optimizers
from .apply import prune_as_configured

__all__ = ['hooks', 'optimizers', 'prune_as_configured']
