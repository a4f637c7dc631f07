"""Experiments on key pruning (tgGBC)."""
