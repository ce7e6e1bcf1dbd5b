"""GGUF through llama.cpp. Only `context` and `sampling` touch its low-level functions."""
