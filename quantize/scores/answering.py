"""The child's side of `reader`: lines in, lines and rows out, whatever the engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backends.files import model_files
from quantize.calibrate import MAX_TEXT_BYTES
from quantize.orphan import die_with_parent


class Scorer(Protocol):
    """A loaded model."""

    n_vocab: int
    first_token: int | None

    def tokenize(self, text: str) -> list[int]:
        """Without special tokens."""
        ...

    def logits(self, window: Sequence[int], first_output: int) -> npt.NDArray[np.float32]:
        """`(len(window) - first_output, n_vocab)` from an empty memory."""
        ...

    def decode_one(self, token: int, at: int) -> int:
        """The likeliest token after this one, which stands at position `at`."""
        ...


def answer(make: Callable[[dict[str, Any]], Scorer], *, can_tokenize: bool) -> None:
    """Load what the first line names, then answer until the input ends."""
    die_with_parent()
    scorer = make(json.loads(sys.stdin.readline()))
    _send({"n_vocab": scorer.n_vocab, "first_token": scorer.first_token, "can_tokenize": can_tokenize})
    for line in sys.stdin:
        request = json.loads(line)
        if "tokenize" in request:
            _send({"tokens": scorer.tokenize(model_files.read_text(Path(request["tokenize"]), MAX_TEXT_BYTES))})
        elif "speed" in request:
            _send(_speed(scorer, *request["speed"]))
        else:
            rows = scorer.logits(request["window"], request["first_output"])
            _send({"n_rows": len(rows)})
            _send_rows(rows, request["rows"])


def _speed(scorer: Scorer, n_prompt: int, n_decode: int) -> dict[str, float]:
    """The best of three: what others do on the machine meanwhile only ever slows it."""
    prompt = [5 + i % 200 for i in range(n_prompt)]
    scorer.logits(prompt, n_prompt - 1)
    prefill_s, decode_s = [], []
    for _ in range(3):
        started = time.perf_counter()
        token = int(scorer.logits(prompt, n_prompt - 1)[-1].argmax())
        middle = time.perf_counter()
        for i in range(n_decode):
            token = scorer.decode_one(token, n_prompt + i)
        prefill_s.append(middle - started)
        decode_s.append(time.perf_counter() - middle)
    return {"prefill": n_prompt / min(prefill_s), "decode": n_decode / min(decode_s)}


def _send(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def _send_rows(rows: npt.NDArray[np.float32], at_once: int) -> None:
    blocks: Iterable[npt.NDArray[np.float32]] = (rows[i : i + at_once] for i in range(0, len(rows), at_once))
    for block in blocks:
        sys.stdout.buffer.write(np.ascontiguousarray(block, np.float32).tobytes())
    sys.stdout.buffer.flush()
