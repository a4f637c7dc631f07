"""What a model costs and how well it does: latency, FLOPs, memory, accuracy; as tables and JSON."""
