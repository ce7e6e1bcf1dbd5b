"""The `onecard` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; every failure is a sentence and an exit code, never a traceback."""
    from server.cli.early import end_quietly, hear_as_usual, open_standard_files

    end_quietly()  # while modules are imported there is nothing else to interrupt
    open_standard_files()
    from server.cli.app import command
    from server.cli.completing import rejoin_words_of_bash
    from server.cli.console import CliError, ExitCode, complain
    from server.cli.output import open_output, sentence, silence

    open_output()
    rejoin_words_of_bash()
    if sys.argv[1:2] != ["serve"]:
        hear_as_usual()
    try:
        try:
            command()()
        finally:
            sys.stdout.flush()
    except CliError as problem:
        complain(problem.message)
        sys.exit(problem.code)
    except UnicodeEncodeError:  # bytes of the command line that are no text, where text is needed
        complain("what was given is no text in UTF-8")
        sys.exit(ExitCode.USAGE)
    except BrokenPipeError:  # the reader of our output went away (`onecard list | head`)
        silence(sys.stdout)
        sys.exit(ExitCode.ERROR)
    except OSError as problem:
        silence(sys.stdout)
        complain(sentence(problem))
        sys.exit(ExitCode.ERROR)
