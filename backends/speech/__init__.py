"""Speech to text: Whisper folders through transformers, their audio decoded by PyAV in the worker."""
