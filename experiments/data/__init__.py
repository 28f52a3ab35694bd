"""Data sets, and what the commands read of them."""
