"""Experiments on query pruning (GPQ)."""
