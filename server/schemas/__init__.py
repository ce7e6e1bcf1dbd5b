"""What clients send: checked, bounded, turned into jobs."""
