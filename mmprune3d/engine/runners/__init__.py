"""Runners; registered in mmengine's root registry, so that a bare name works in any scope."""

from .altermoma_runner import AlterMOMARunner, PruningRunner

__all__ = ['AlterMOMARunner', 'PruningRunner']
