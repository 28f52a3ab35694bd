"""Settings of the cloud: frozen dataclasses, nothing else."""
