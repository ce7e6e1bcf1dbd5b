"""What the operator asked for: the configuration, where it comes from, and the models by name."""
