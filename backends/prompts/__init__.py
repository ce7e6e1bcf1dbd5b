"""From a conversation to text that a model reads, and from its bytes to text that a client reads."""
