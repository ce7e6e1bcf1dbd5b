"""Who a key belongs to: its name, its limits and what it has used."""
