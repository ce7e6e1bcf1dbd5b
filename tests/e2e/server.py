"""A real `onecard serve` as a child process, and what a test wants to know of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests import warm
from tests.cpu import cpu_s

KEY = "test-key"


@dataclass
class Server:
    """One running server. `url` has no path."""

    process: warm.Process
    url: str
    log: Path

    def client(self, **options: Any) -> openai.OpenAI:
        """The real SDK, strict about what it receives, without retries so that every answer is seen."""
        settings = {"max_retries": 0, "timeout": 60.0, "_strict_response_validation": True, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, **settings)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, _strict_response_validation=True, max_retries=0, timeout=60.0
        )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as response:
            return json.loads(response.read())

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples by name and labels, read with Prometheus' own parser."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics()[name, frozenset(labels.items())]

    def cpu_s(self) -> float:
        """What the server process, without its workers, has computed."""
        return cpu_s(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """The worker processes of this server, without the template process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _name(child) == "onecard-worker"]

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 40) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def _name(process: psutil.Process) -> str:
    """What it calls itself."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def serving(
    folder: Path, *, models: Mapping[str, Path | str], flags: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """`onecard serve` with these models on a free port; killed at the end if it still runs."""
    named = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    log = folder / f"serve-{time.monotonic_ns()}.log"
    given = {**os.environ, **(env or {})}
    with log.open("w") as stderr:
        process = warm.popen(
            "server.cli", ["serve", "--port", "0", *named, *flags], stdout=subprocess.PIPE, stderr=stderr, env=given
        )
    try:
        yield Server(process, _url(process, log), log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def _url(process: warm.Process, log: Path) -> str:
    """The address in the first line of the server, which comes when it is ready."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        spoke = selector.select(timeout=30)
    found = re.search(r"http://[\w.\[\]:]+:\d+", process.stdout.readline()) if spoke else None
    assert found, f"the server did not come up:\n{log.read_text()}"
    return found.group()


def until(condition: Callable[[], object], within_s: float = 5.0, *, what: str = "it did not come to be") -> float:
    """Poll a fact of another process until it holds; how long that took. Fails after `within_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - began
