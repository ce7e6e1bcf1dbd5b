"""Models that draw: files, engine, and images over HTTP."""
