"""`onecard connect`."""
