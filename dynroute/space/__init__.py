"""The routing space: its wiring, and routes through it."""
