"""Recording and profiling a training, and the rules that look for what goes wrong."""
