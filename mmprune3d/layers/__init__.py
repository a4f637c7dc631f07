"""Modules made of the pruning and ops rooms."""
