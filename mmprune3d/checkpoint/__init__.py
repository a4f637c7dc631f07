"""Reading, converting and loading of checkpoints: state dicts in and out, and errors instead of silent mismatches."""
