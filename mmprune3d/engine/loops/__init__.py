"""Loops; registered in mmengine's root registry, so that a bare name works in any scope."""

from .altermoma_loop import AlterMOMAIterLoop, AlterMOMALoop, PruningIterLoop, PruningLoop

__all__ = ['AlterMOMAIterLoop', 'AlterMOMALoop', 'PruningIterLoop', 'PruningLoop']
