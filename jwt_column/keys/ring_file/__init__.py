"""The key-ring file: its format, its changes, and its place on disk."""
