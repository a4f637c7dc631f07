"""Building blocks with one meaning on CPU and GPU."""
