"""Functions from state dict to state dict, and loading that does not hide what went wrong."""
