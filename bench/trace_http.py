"""A trace of `bench.trace` over HTTP: a server of its own, and clients that ask one request after the other."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.request
from itertools import cycle
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.serving import running
from bench.trace import PARALLEL, Outcome, Trace, tiny
from demo import GGUF_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_S = 120.0


def measure() -> dict[str, float]:
    """The trace of tiny models."""
    return {f"tiny_http_{key}": value for key, value in run(tiny()).figures().items()}


def run(trace: Trace) -> Outcome:
    """Serve the trace once; each wait is from the request to the whole answer."""
    outcome = Outcome()
    left = iter(range(trace.n_requests))
    lock = threading.Lock()
    with running(_config(trace)) as server:
        clients = [_Client(server.url, models, left, lock, trace, outcome) for models in trace.clients]
        began = time.monotonic()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        outcome.seconds = time.monotonic() - began
        outcome.n_loads = _loads(server.url)
    return outcome


class _Client(threading.Thread):
    def __init__(
        self,
        url: str,
        models: Sequence[str],
        left: Iterator[int],
        lock: threading.Lock,
        trace: Trace,
        outcome: Outcome,
    ) -> None:
        super().__init__(daemon=True)
        self._url, self._models, self._left, self._lock = url, cycle(models), left, lock
        self._trace, self._outcome = trace, outcome

    def run(self) -> None:
        """Ask until the trace is over."""
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=_TIMEOUT_S)
        while self._next() is not None:
            began = time.monotonic()
            error = self._ask(connection, next(self._models))
            with self._lock:
                self._outcome.waits_s.append(time.monotonic() - began)
                if error is not None:
                    self._outcome.errors.append(error)
        connection.close()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._left, None)

    def _ask(self, connection: http.client.HTTPConnection, model: str) -> str | None:
        """What went wrong; None when nothing did."""
        body = {"model": model, "prompt": "Once", "max_tokens": self._trace.n_tokens, "ignore_eos": True}
        try:
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps({**body, "temperature": 0}),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"{type(error).__name__}: {error}"
        return None if response.status == 200 else f"{response.status}: {answer[:300].decode(errors='replace')}"


def _config(trace: Trace) -> str:
    models = "".join(
        f'[models.{name}]\npath = "{GGUF_PATH}"\ncontext = {context}\nparallel = {PARALLEL}\nkv_type = "f16"\n'
        for name, context in trace.contexts.items()
    )
    return f'[memory]\ndevice = "cpu"\nbudget = {trace.budget_bytes}\n{models}'


def _loads(url: str) -> int:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        page = response.read().decode()
    counted = re.findall(r"^onecard_model_loads_total\{[^}]*\} (\S+)", page, re.MULTILINE)
    return int(sum(float(n) for n in counted))
