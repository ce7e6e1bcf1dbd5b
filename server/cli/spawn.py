"""A server of our own for the time of one command: started on a free port, gone with us."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from server.cli.console import CliError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

_URL = re.compile(r"serves (http://\S+)/v1$|\"url\": \"(http://[^\"]+)\"")
"""In the greeting's first line, as text or as JSON."""
_END_S = 10
_MODELS = "ONECARD_MODELS"


@contextmanager
def own_server(
    models: list[str], config: Path | None, *, tables: Mapping[str, dict[str, Any]] | None = None
) -> Generator[str, None, None]:
    """Start `onecard serve` for these `--model` values, yield its URL, end it. Raises CliError.

    `tables` are keys of `[models.NAME]` that win over the configuration file's.
    """
    command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1", "--port", "0", "--exit-with-stdin"]
    command += [f"--model={model}" for model in models] + ([f"--config={config}"] if config else [])
    with (
        tempfile.TemporaryFile() as log,
        # Its stdin is our end of a pipe: when we are gone, however we went, it reads the end and goes too.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=_environment(tables or {}),
        ) as process,
    ):
        try:
            first = process.stdout.readline() if process.stdout else ""
            match = _URL.search(first.strip())
            if match is None:
                process.wait()
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise CliError(
                    f"the server did not start: {last[0].removeprefix('onecard: ')}", _code(process.returncode)
                )
            yield match[1] or match[2]
        finally:
            _end(process)


def _environment(tables: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Ours, with the tables added to the variable that holds models as JSON."""
    if not tables:
        return dict(os.environ)
    written = json.loads(os.environ.get(_MODELS) or "{}")
    return {
        **os.environ,
        _MODELS: json.dumps({**written, **{n: {**written.get(n, {}), **t} for n, t in tables.items()}}),
    }


def _code(returncode: int) -> ExitCode:
    return ExitCode(returncode) if returncode in list(ExitCode) and returncode else ExitCode.ERROR


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
