"""Layers of the detectors: attention with a record for key pruning, token halting, sparse and slimmable layers."""

from . import tggbc, tome

__all__ = ['tggbc', 'tome']  # importing them registers their pruners
