"""Fewer tokens in: compressors of long contexts."""
