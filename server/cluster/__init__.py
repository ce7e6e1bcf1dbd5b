"""Several servers behind one address: which node gets a request, and the application of Ray Serve that does it."""
