"""Hugging Face folders read and turned into GGUF files."""
