"""Images on their way from a request to an engine, without one that sees: an imaginary backend says what it got."""
