"""The machine that a rehearsed job or endpoint sees."""
