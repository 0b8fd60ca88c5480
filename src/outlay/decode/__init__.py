"""Cheaper steps out: decoders that spend fewer or better-placed tokens."""
