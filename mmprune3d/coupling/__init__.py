"""Coupled channels of any model: which channels can only be removed together."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
