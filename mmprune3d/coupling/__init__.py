"""Coupled channels of any model: which channels can only be removed together."""
