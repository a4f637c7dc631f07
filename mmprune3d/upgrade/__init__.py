"""Upgrades: a config and a checkpoint in, a faster pair and the evidence out."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
