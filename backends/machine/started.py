"""How a process of ours is started by another one: the arguments that its module takes. Imports nothing heavy."""

from __future__ import annotations

import argparse


def arguments(program: str, *further: str) -> argparse.Namespace:
    """`--fd`, the number of its end of a socket, `--parent`, the process that it must not outlive, and further texts.

    Args:
        program: The name in an error about the arguments.
        further: Names of options that are there too, such as `backend`.
    """
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    for name in further:
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()
