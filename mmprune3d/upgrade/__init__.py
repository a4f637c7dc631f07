"""Upgrades: a config and a checkpoint in, a faster pair and the evidence out."""
