"""Measurements of onecard against its own engine: a bare loop, the server, and the parts between them. Not tests."""
