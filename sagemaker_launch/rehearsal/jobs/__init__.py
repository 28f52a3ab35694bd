"""Rehearsed jobs."""
