"""Hooks; registered in mmengine's root registry, so that a bare name works in any scope."""

from .allow_mismatch_hook import AllowShapeMismatchHook
from .tggbc_hook import TgGBCHook

__all__ = ['AllowShapeMismatchHook', 'TgGBCHook']
