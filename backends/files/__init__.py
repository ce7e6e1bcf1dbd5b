"""Files of models: the one opener, what a file is, what it says of sampling."""
