"""What the machine and its kernel tell and are asked."""
