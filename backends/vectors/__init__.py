"""The engine that gives vectors and scores instead of text."""
