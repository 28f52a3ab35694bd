"""What a debugged job saved, read and shown."""
