"""Caches that are computed once for all trials: decoded photos and features."""
