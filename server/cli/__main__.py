"""`python -m server.cli` is `onecard`."""

from server.cli import main

main()
