"""Fakes that keep the rules of what they stand for."""
