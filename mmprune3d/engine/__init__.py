"""When things are removed: hooks, loops, runners and optimizer wrappers for mmengine."""

from . import hooks, optimizers

__all__ = ['hooks', 'optimizers']
