"""Inspection of trained detectors: what they do with their keys, queries, tokens and layers."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
