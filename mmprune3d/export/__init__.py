"""Export of pruned detectors to other runtimes."""
