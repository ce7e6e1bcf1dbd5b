"""Child processes that do the heavy work: a request as JSON on stdin, progress and results as JSON lines on stdout.

A child may abort in C code on a bad file, so nothing here trusts it: what it says last on stderr is the reason, and
when the parent is interrupted the child goes first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from quantize.errors import QuantizeError

GRACE_S: Final = 5.0
_SPINS: Final = 20_000
"""As of a worker's threads (`backends.border.child`): with libgomp's own 300 000, children beside a busy process spend
half of their processor time looking whether the other threads have come."""
Message = dict[str, Any]


def run(module: str, request: Message, on_message: Callable[[Message], None]) -> None:
    """Run `python -m module` to its end. Raises QuantizeError with its reason when it fails."""
    with started(module) as (child, last_lines):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass
        for line in child.stdout:
            if (message := _message(line)) is not None:
                on_message(message)
            else:  # C code that aborts prints where it likes
                last_lines.append(line.decode("utf-8", "replace").strip()[:500])
        if child.wait() != 0:
            raise QuantizeError(reason(last_lines, child.returncode))


def _message(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


@contextmanager
def started(module: str) -> Iterator[tuple[subprocess.Popen[bytes], deque[str]]]:
    """A child and its last lines on stderr; it is gone when the block ends, however it ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(os.environ),
    )
    last_lines: deque[str] = deque(maxlen=20)
    listener = threading.Thread(target=_listen, args=(child, last_lines), daemon=True)
    listener.start()
    try:
        yield child, last_lines
    finally:
        end(child)
        listener.join(GRACE_S)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a child gets to see; how long its threads look for each other unless the operator has said so."""
    waits = {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & inherited.keys() else {"GOMP_SPINCOUNT": str(_SPINS)}
    return {**inherited, **waits, "GGML_NO_BACKTRACE": "1"}


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask, then make it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _listen(child: subprocess.Popen[bytes], last_lines: deque[str]) -> None:
    assert child.stderr is not None
    with child.stderr as stderr:
        for line in stderr:
            if text := line.decode("utf-8", "replace").strip():
                last_lines.append(text[:500])


def reason(last_lines: deque[str], code: int) -> str:
    """One sentence of why a child failed."""
    said = last_lines[-1] if last_lines else ""
    for prefix in ("llama_model_quantize: failed to quantize: ", "quantize: "):
        said = said.removeprefix(prefix)
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"llama.cpp or its caller failed ({how}): {said or 'it said nothing'}"
