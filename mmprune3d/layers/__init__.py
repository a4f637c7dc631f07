"""Modules made of the pruning and ops rooms."""

from . import tggbc, tome

__all__ = ['tggbc', 'tome']  # importing them registers their pruners
