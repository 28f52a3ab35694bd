"""Heads on the features of a frozen backbone, alone and many at once."""
