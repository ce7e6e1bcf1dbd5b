"""Requests that have time: read from a file, run while the server has nothing else to do, answered in a file."""
