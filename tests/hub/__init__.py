"""Getting models, over a hub on this machine."""
