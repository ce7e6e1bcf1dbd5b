"""Which model is resident and which job is next: pure decisions."""
