"""Pictures to files; nothing here needs a display."""
