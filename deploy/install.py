"""Installs onecard into `.venv`, once: `python3 deploy/install.py serve|install|test|gpu`.

serve: the server and the GGUF engine. install: both engines. test: everything that `make check` needs.
gpu: what `bench/gpu.sh` needs, over the packages that this Python has, because PyTorch is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from installer.build import BUILDS
from installer.machine import look
from installer.place import Place, cache_folder
from installer.running import Progress
from installer.steps import EXTRAS, install
from installer.words import InstallError

ROOT = Path(__file__).resolve().parent.parent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="install.py")
    parser.add_argument("variant", choices=list(EXTRAS))
    parser.add_argument("--build", choices=BUILDS, help="auto looks for a card; cpu does without; cuda stops without")
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="another environment than .venv, with a copy of the code"
    )
    return parser.parse_args()


def _remembered(place: Place, asked: str | None) -> str:
    """The build that was asked for, now or the last time."""
    kept = place.stamp("build")
    if asked is None:
        return kept.read_text() if kept.is_file() and kept.read_text() in BUILDS else "auto"
    if place.venv.is_dir():
        kept.write_text(asked)
    return asked


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another installation from this folder to end."""
    handle = os.open(folder, os.O_RDONLY)
    progress = Progress("waiting for another installation here")
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.tick(time.monotonic())
                time.sleep(0.2)
        progress.end()
        yield
    finally:
        os.close(handle)


def main() -> int:
    """The command line; exit code 1 with a sentence on failure."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the whole point is to say so on an older Python
        print(f"onecard needs Python 3.11 or newer, this is {sys.version.split()[0]}. hint: make PYTHON=python3.11 ...")
        return 1
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    venv = options.into or ROOT / ".venv"
    place = Place(ROOT, venv, cache_folder(os.environ, venv / "cache"))
    try:
        with _alone(ROOT):
            asked = _remembered(place, options.build)
            install(options.variant, asked, place, look(), os.environ, editable=options.into is None)
    except InstallError as problem:
        print(f"onecard: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"onecard: {problem.filename or 'a file'}: {problem.strerror}. hint: make it yours", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("onecard: interrupted. hint: the same again goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
