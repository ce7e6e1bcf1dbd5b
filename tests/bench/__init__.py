"""The measuring instruments are right about what they measure."""
