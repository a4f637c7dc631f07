"""Data transforms for detectors with several cameras, and the generator of synthetic data sets."""
