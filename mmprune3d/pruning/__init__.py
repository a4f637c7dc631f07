"""What is removed: pure functions from tensors to indices, masks and scores. Only torch and the standard library."""
