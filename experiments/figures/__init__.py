"""Pictures of runs and studies."""
