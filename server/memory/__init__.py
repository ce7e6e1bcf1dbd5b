"""What models cost and whether they fit: prices, plans, and the books in bytes."""
