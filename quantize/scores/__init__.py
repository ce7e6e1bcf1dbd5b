"""How much quality a file keeps: both models read the same windows of text, and their predictions are compared."""
