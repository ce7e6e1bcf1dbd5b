"""The process border: frames, both ends of a worker's socket, the processes themselves, dry loads."""
