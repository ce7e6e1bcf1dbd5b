"""Decodes every file of a folder as a worker does, and prints what became of each. For a child process with limits.

Usage: python -m tests.speech.decode_all FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from backends.engine import JobError
from backends.speech.audio import Recording
from backends.speech.kind import FILE_BYTES, Pauses
from backends.speech.windows import Windows

LIMIT_BYTES = 2 * 2**30


def outcome(path: Path) -> str:
    """`heard`, or the code of what it is refused with."""
    try:
        recording = Recording(str(path), n_bytes=FILE_BYTES, max_s=5 * 3600)
        try:
            for _ in Windows(Pauses()).of(recording.pieces()):
                pass
        finally:
            recording.close()
    except JobError as error:
        told = error.message
        return error.code if len(told) < 300 and str(path.parent) not in told else f"says too much: {told}"
    return "heard"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {path.name: outcome(path) for path in sorted(Path(sys.argv[1]).iterdir())}
    more_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(json.dumps({"found": found, "more_bytes": more_kib * 1024}))


if __name__ == "__main__":
    main()
