"""Layers of the detectors: attention with a record for key pruning, token halting, sparse and slimmable layers."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)

from . import tggbc, tome

__all__ = ['tggbc', 'tome']  # importing them registers their pruners
