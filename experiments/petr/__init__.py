"""The training recipe of petr_tiny."""
