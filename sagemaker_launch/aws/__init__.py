"""AWS's clients and logs."""
