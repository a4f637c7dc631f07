"""Hooks; registered in mmengine's root registry, so that a bare name works in any scope."""

from .allow_mismatch_hook import AllowShapeMismatchHook
from .exact_on_cpu_hook import ExactOnCPUHook
from .gpq_hook import GPQHook
from .halting_hook import HaltingHook
from .iteration_seed_hook import IterationSeedHook
from .key_pruning_hook import TgGBCHook, ToMeHook
from .mask_hook import MaskHook

__all__ = [
    'AllowShapeMismatchHook',
    'ExactOnCPUHook',
    'GPQHook',
    'HaltingHook',
    'IterationSeedHook',
    'MaskHook',
    'TgGBCHook',
    'ToMeHook',
]
