"""Functions that draw pictures of detections, keys, queries and tokens into files; no display is needed."""
