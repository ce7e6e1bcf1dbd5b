"""Makers of model files for tests: models whose answers are known exactly, and files that are broken in a known way."""
