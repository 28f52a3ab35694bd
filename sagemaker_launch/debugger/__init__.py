"""Read and show the tensors of a debugged job."""
