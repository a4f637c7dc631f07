"""Hooks; registered in mmengine's root registry, so that a bare name works in any scope."""

from .allow_mismatch_hook import AllowShapeMismatchHook
from .exact_on_cpu_hook import ExactOnCPUHook
from .gpq_hook import GPQHook
from .halting_hook import HaltingHook
from .iteration_seed_hook import IterationSeedHook
from .mask_hook import MaskHook
from .tggbc_hook import TgGBCHook
from .tome_hook import ToMeHook

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
