"""Layers of the detectors: attention with a record for key pruning, token halting, sparse and slimmable layers."""
