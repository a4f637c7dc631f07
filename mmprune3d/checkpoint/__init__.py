"""Reading, converting and loading of checkpoints: state dicts in and out, and errors instead of silent mismatches."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
