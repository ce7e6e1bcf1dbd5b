"""A onecard server as a process of its own, started through the command line on a free port, and what it weighs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 60.0
MODEL_NAME = "bench"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def resident_bytes(self) -> int:
        """Resident set of the server process, workers not included."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found.group(1)) * 1024 if found else 0

    def cpu_seconds(self) -> float:
        """Processor time of the server process so far, workers not included."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def config_text(model: Path, *, context: int, parallel: int) -> str:
    """A configuration with the measured model alone."""
    return f'[models.{MODEL_NAME}]\npath = "{model}"\ncontext = {context}\nparallel = {parallel}\n'


@contextlib.contextmanager
def running(config: str = "", *, tree: Path | None = None) -> Iterator[Server]:
    """Serve with this configuration (none: the demo model) until the block ends, from this tree or another.

    Raises RuntimeError with the log.
    """
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        flags = ["--port", "0"]
        if config:
            file = Path(folder) / "onecard.toml"
            file.write_text(config)
            flags += ["--config", str(file)]
        command = [sys.executable, "-m", "server.cli", "serve", "--exit-with-stdin", *flags]
        environment = {**os.environ, "NO_COLOR": "1"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=tree)
        try:
            yield Server(_wait(process, Path(log.name)), process.pid)
        finally:
            end(process, within_s=40)


def end(process: subprocess.Popen[bytes], *, within_s: float) -> None:
    """Ask a process to end, kill it when it does not in time, and reap it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(process: subprocess.Popen[bytes], url: str, *, within_s: float) -> bool:
    """Wait until another server says on `/health` that it is ready; False when it ends or the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
        time.sleep(0.1)
    return False


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL, once `/ready` answers there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\w.]+:\d+", log.read_text())
        if found and _answers(found.group() + "/ready"):
            return found.group()
        time.sleep(0.05)
    raise RuntimeError(f"the server did not become ready; it wrote:\n{log.read_text()[-4000:]}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def import_seconds() -> float:
    """Time `import server.app` takes in a fresh interpreter, with compiled modules cached: best of three."""
    code = "import time; t = time.perf_counter(); import server.app; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)
