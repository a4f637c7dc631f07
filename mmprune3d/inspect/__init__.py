"""Inspection of trained detectors: what they do with their keys, queries, tokens and layers."""
