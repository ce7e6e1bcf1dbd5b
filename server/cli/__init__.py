"""The `onecard` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; every failure is a sentence and an exit code, never a traceback."""
    from server.cli.early import end_quietly, hear_as_usual

    end_quietly()  # while modules are imported there is nothing else to interrupt
    from server.cli.app import app
    from server.cli.console import CliError, say

    if sys.argv[1:2] != ["serve"]:
        hear_as_usual()
    try:
        app()
    except CliError as problem:
        for line in problem.message.splitlines():
            say(f"onecard: {line}")
        sys.exit(problem.code)
    except BrokenPipeError:
        # The reader of our output went away (`onecard list | head`); what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
