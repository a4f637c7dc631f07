"""Tensor operations that give the same results on CPU and GPU: attention, sparse convolution, voxels, boxes."""
