"""The data plane: worker processes and the inference engines inside them. Never imports server or quantize."""
