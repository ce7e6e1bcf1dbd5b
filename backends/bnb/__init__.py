"""Hugging Face model folders: what their files say, and what they would take."""
