"""A model in a child process that answers windows of tokens with logits, a few rows at a time.

Frames: a JSON line each way; an answer with rows is followed by their float32 bytes. So neither side ever holds the
logits of a text, only those of a few rows.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from quantize import child
from quantize.errors import QuantizeError

ROWS_AT_ONCE: Final = 32
Rows = npt.NDArray[np.float32]


@dataclass
class LogitsReader:
    """A model that is loaded in its child."""

    process: Popen[bytes]
    last_lines: deque[str]
    n_vocab: int
    first_token: int | None
    can_tokenize: bool

    def tokenize(self, text: Path) -> list[int]:
        """The tokens of a text file."""
        tokens: list[int] = self._ask({"tokenize": str(text)})["tokens"]
        return tokens

    def begin(self, window: list[int], first_output: int) -> None:
        """Ask for the logits from `first_output` on; `rows` then brings them."""
        self._send({"window": window, "first_output": first_output, "rows": ROWS_AT_ONCE})

    def rows(self) -> Iterator[Rows]:
        """Blocks `(<= ROWS_AT_ONCE, n_vocab)` of the window asked for."""
        left = self._receive()["n_rows"]
        assert self.process.stdout is not None
        while left:
            n = min(left, ROWS_AT_ONCE)
            data = self.process.stdout.read(n * self.n_vocab * 4)
            if len(data) != n * self.n_vocab * 4:
                raise self._failure()
            yield np.frombuffer(data, np.float32).reshape(n, self.n_vocab)
            left -= n

    def speed(self, *, n_prompt: int, n_decode: int) -> tuple[float, float]:
        """Tokens per second: prefill of `n_prompt`, then decode of `n_decode` one by one."""
        answer = self._ask({"speed": [n_prompt, n_decode]})
        return float(answer["prefill"]), float(answer["decode"])

    def _ask(self, request: child.Message) -> child.Message:
        self._send(request)
        return self._receive()

    def _send(self, request: child.Message) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _receive(self) -> child.Message:
        return receive(self.process, self.last_lines)

    def _failure(self) -> QuantizeError:
        return _failure(self.process, self.last_lines)


@contextmanager
def reading(path: Path, *, n_ctx: int, threads: int = 0) -> Iterator[LogitsReader]:
    """A GGUF file or a model folder, loaded; gone when the block ends."""
    module = "quantize.scores.gguf_main" if path.is_file() else "quantize.scores.folder_main"
    with child.started(module) as (process, last_lines):
        assert process.stdin is not None
        request = {"path": str(path), "n_ctx": n_ctx, "threads": threads or os.cpu_count() or 1}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        ready = receive(process, last_lines)
        yield LogitsReader(process, last_lines, ready["n_vocab"], ready["first_token"], ready["can_tokenize"])


def receive(process: Popen[bytes], last_lines: deque[str]) -> child.Message:
    """One line. Raises QuantizeError with the child's crash reason when it is gone."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise _failure(process, last_lines)
    message: Any = json.loads(line)
    assert isinstance(message, dict)
    return message


def _failure(process: Popen[bytes], last_lines: deque[str]) -> QuantizeError:
    code = process.wait()
    return QuantizeError(child.reason(last_lines, code))
