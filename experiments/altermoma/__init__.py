"""Experiments on pruning fusion detectors (AlterMOMA)."""
