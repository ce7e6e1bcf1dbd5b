"""Cached prefixes: where the longest one of a new prompt is, what is kept of them, and for how long."""
