"""Functions from state dict to state dict, and loading that does not hide what went wrong."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
