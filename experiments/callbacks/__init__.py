"""Lightning callbacks of the training path."""
