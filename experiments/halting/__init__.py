"""Experiments on token halting."""
