"""Files that clients have uploaded, and those that the server makes for them: on disk, between runs."""
