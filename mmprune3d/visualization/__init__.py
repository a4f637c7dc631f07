"""Functions that draw pictures of detections, keys, queries and tokens into files; no display is needed."""

import mmengine  # noqa: F401  (first, so that everything is registered before this runs: mmprune3d/registration.py)
