"""Rehearsed endpoints."""
