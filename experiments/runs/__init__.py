"""A run on this machine: its folder, log, scores and processes."""
