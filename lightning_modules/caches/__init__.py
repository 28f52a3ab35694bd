"""What is computed once for all trials: decoded photos and features."""
