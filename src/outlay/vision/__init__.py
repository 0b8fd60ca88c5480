"""Fewer image and video tokens."""
