"""The engine that generates text, over what a library offers it (`decoder`)."""
