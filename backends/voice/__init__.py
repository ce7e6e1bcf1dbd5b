"""Text to speech: voices of hibari in onnxruntime."""
