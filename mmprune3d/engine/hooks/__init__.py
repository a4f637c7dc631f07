"""Hooks; registered in mmengine's root registry, so that a bare name works in any scope."""

from .allow_mismatch_hook import AllowShapeMismatchHook
from .gpq_hook import GPQHook
from .iteration_seed_hook import IterationSeedHook
from .key_pruning_hook import TgGBCHook, ToMeHook

__all__ = ['AllowShapeMismatchHook', 'GPQHook', 'IterationSeedHook', 'TgGBCHook', 'ToMeHook']
