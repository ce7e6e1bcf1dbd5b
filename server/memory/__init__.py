"""What models take and whether they fit: estimates, placement, and the ledger of both memories."""
