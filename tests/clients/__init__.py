"""Real clients against a real server: `make clients` installs them apart from the tests and runs a file for each."""
