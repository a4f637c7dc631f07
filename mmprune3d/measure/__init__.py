"""Measurements of any detector: accuracy, time, operations, memory. No method is known here."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
