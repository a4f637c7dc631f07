"""Measurements of any detector: accuracy, time, operations, memory. No method is known here."""
