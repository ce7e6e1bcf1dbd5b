"""Ears: real Whisper weights and a real voice, both from packages."""
