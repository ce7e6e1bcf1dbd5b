"""How long a swap takes: tiny models under one server, of which one fits at a time, asked in turn.

Every figure is a median in milliseconds. `ttft_ms` is from the request to the first token of a model that had to be
swapped in; `overhead_ms` is that without the engine's own load and without what a resident model needs to its first
token: unloading the other, giving its memory back, the process, the queue.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from bench.serving import running
from demo import GGUF_PATH

NAMES = ("a", "b")


def measure(*, rounds: int = 20, template: bool = True, pause_s: float = 0.0) -> dict[str, float]:
    """Swap a -> b -> a ..., back to back or with a pause between."""
    budget = _budget_for_one()
    with running(_config(budget=budget, template=template)) as server:
        first_token_ms(server.url, NAMES[1])
        cold, warm, engine = [], [], []
        for index in range(rounds):
            name = NAMES[index % 2]
            time.sleep(pause_s)
            began_loads = _loads(server.url)
            cold.append(first_token_ms(server.url, name))
            engine.append(1000 * _engine_s(server.url, name))
            if _loads(server.url) == began_loads:
                raise RuntimeError("the model was still there: nothing was swapped")
            warm.append(first_token_ms(server.url, name))
    ttft, resident, load = statistics.median(cold), statistics.median(warm), statistics.median(engine)
    return {
        "ttft_ms": ttft,
        "ttft_worst_ms": max(cold),
        "load_ms": load,
        "resident_ttft_ms": resident,
        "overhead_ms": statistics.median(c - w - e for c, w, e in zip(cold, warm, engine, strict=True)),
    }


def _config(*, budget: str, template: bool) -> str:
    models = "".join(f'[models.{name}]\npath = "{GGUF_PATH}"\ncontext = 512\nparallel = 1\n' for name in NAMES)
    scheduler = f"[scheduler]\nmin_residency_s = 0\ntemplate_process = {str(template).lower()}\n"
    return f'[memory]\ndevice = "cpu"\nbudget = "{budget}"\n{scheduler}{models}'


def _budget_for_one() -> str:
    """A budget that holds one of the models and not two, from what the server itself says one takes."""
    with running(_config(budget="2GiB", template=False)) as server:
        first_token_ms(server.url, NAMES[0])
        booked = model_status(server.url, NAMES[0])
    return str(int(1.6 * max(booked["predicted_bytes"], booked["measured_bytes"])))


def first_token_ms(url: str, model: str) -> float:
    """From the request to the first piece of text of its stream. Raises RuntimeError."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 2}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()[:400]!r}")
        while line := response.readline():
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                took_ms = (time.perf_counter() - began) * 1000
                response.read()
                return took_ms
    finally:
        connection.close()
    raise RuntimeError("the stream held no text")


def model_status(url: str, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/v1/status", timeout=10) as response:
        models = json.load(response)["models"]
    found: dict[str, Any] = next(model for model in models if model["name"] == name)
    return found


def _engine_s(url: str, name: str) -> float:
    """What the engine itself says the last load took."""
    return float(model_status(url, name)["load_s"])


def _loads(url: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        page = response.read().decode()
    return sum(
        float(n) for n in re.findall(r'^onecard_model_loads_total\{[^}]*outcome="ok"[^}]*\} (\S+)', page, re.MULTILINE)
    )
