"""How one warm streamed chat walks through the code: files it touches, and how often the next call is in another file.

Every call of a Python function of ours counts, resumed coroutines too, thread by thread, in the server and in the
worker. A profile hook is put into both by a `sitecustomize` on the path, so that nothing in the product knows of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.serving import running

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
MOST_FILES: Final = 45
MOST_CHANGES: Final = 400
"""What we want to stay below."""
BY_THE_CLOCK: Final = (
    *("server/memory/", "backends/machine/", "server/cli/lifecycle.py"),
    *("backends/border/worker.py", "backends/border/child.py", "backends/border/wire.py"),
)
"""Beginnings of files that are entered every second as well, whatever is asked: looks at the memory, pings."""
_QUESTION: Final = "What is the capital of France?"
_WITHIN_S: Final = 30.0
_SETTLES_S: Final = 0.3
"""For what follows the last byte of an answer."""
_CONFIG: Final = """[models.demo]
path = "{model}"
context = 2048
[scheduler]
template_process = false
"""
_HOOK: Final = """
import json, mmap, os, sys, threading
FOLDER, ROOT = {folder!r}, {root!r}
def install():
    ours = tuple(os.path.join(ROOT, name) + os.sep for name in ("server", "backends", "demo"))
    with open(os.path.join(FOLDER, "flag"), "rb") as file:
        flag = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    walks, known, written = {{}}, {{}}, []
    def hook(frame, event, _):
        if event != "call" or flag[0] == 0 or written:
            return
        if flag[0] == 2:
            written.append(True)
            part = os.path.join(FOLDER, f"{{os.getpid()}}.part")
            with open(part, "w") as out:
                json.dump({{"command": sys.argv, "walks": list(walks.values())}}, out)
            os.rename(part, part[:-4] + "json")
            return
        code = frame.f_code
        name = known.get(code)
        if name is None:
            inside = code.co_filename.startswith(ours)
            name = known[code] = os.path.relpath(code.co_filename, ROOT) + ":" + code.co_name if inside else ""
        if name:
            walks.setdefault(threading.get_ident(), []).append(name)
    threading.setprofile(hook)
    sys.setprofile(hook)
install()
"""


@dataclass
class Walk:
    """The calls of one chat, by process."""

    threads: dict[str, list[list[str]]]
    """`server` and `worker`: for each thread `file:function` in order."""
    text: str = ""
    n_chunks: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """By file."""
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """From file to file."""

    def __post_init__(self) -> None:
        """Count."""
        for calls in self._each():
            self.calls.update(calls)
            self.changes.update(pair for pair in pairwise(calls) if pair[0] != pair[1])

    @property
    def n_changes(self) -> int:
        """All of them."""
        return self.changes.total()

    @property
    def n_changes_asked(self) -> int:
        """Without the files that are entered by the clock too."""
        asked = ([file for file in calls if not file.startswith(BY_THE_CLOCK)] for calls in self._each())
        return sum(one != other for calls in asked for one, other in pairwise(calls))

    def _each(self) -> Iterator[list[str]]:
        """The files of each thread's calls."""
        for calls in (calls for threads in self.threads.values() for calls in threads):
            yield [call.partition(":")[0] for call in calls]

    def table(self) -> str:
        """Markdown: each file with its calls and how often the walk comes to it; then the commonest changes."""
        into: Counter[str] = Counter()
        for (_, to), n in self.changes.items():
            into[to] += n
        rows = [f"| `{file}` | {self.calls[file]} | {n} |" for file, n in into.most_common()]
        rows += [f"| `{file}` | {n} | 0 |" for file, n in self.calls.most_common() if file not in into]
        edges = [f"| `{a}` | `{b}` | {n} |" for (a, b), n in self.changes.most_common(15)]
        head = (
            f"{len(self.calls)} files (wanted: {MOST_FILES}), {self.n_changes} changes of file (wanted: {MOST_CHANGES})"
        )
        return "\n".join(
            [
                f"{head}; {self.n_chunks} chunks, {self.calls.total()} calls: {self.text!r}",
                *["", "| file | calls | times entered |", "|---|---|---|", *rows],
                *["", "| from | to | times |", "|---|---|---|", *edges],
            ]
        )


def measure(**fields: Any) -> Walk:
    """Serve the demo model, ask twice to warm up, then once with every call written down.

    `fields` are of the request; with a `seed` no tokens are drafted, which goes by the clock.
    """
    from demo import GGUF_PATH

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "flag").write_bytes(b"\0")
        (folder / "sitecustomize.py").write_text(_HOOK.format(folder=name, root=str(ROOT)))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([name, *([before] if before else [])])
        try:
            with running(_CONFIG.format(model=GGUF_PATH)) as server:
                for _ in range(2):
                    _ask(server.url, fields)
                time.sleep(_SETTLES_S)
                _set(folder, 1)
                text, n_chunks = _ask(server.url, fields)
                time.sleep(_SETTLES_S)
                _set(folder, 2)
                told = _collected(folder, server.url)
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
    return Walk(told, text, n_chunks)


def _set(folder: Path, value: int) -> None:
    with (folder / "flag").open("r+b") as flag:
        flag.write(bytes([value]))


def _collected(folder: Path, url: str) -> dict[str, list[list[str]]]:
    """Both processes write when they next do anything: a worker answers pings."""
    deadline = time.monotonic() + _WITHIN_S
    found: dict[str, list[list[str]]] = {}
    while time.monotonic() < deadline and set(found) != {"server", "worker"}:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            time.sleep(0.1)
        for file in folder.glob("*.json"):
            told = json.loads(file.read_text())
            worker = any("worker_main" in word for word in told["command"])
            if worker or any("cli" in word for word in told["command"]):
                found["worker" if worker else "server"] = told["walks"]
    if set(found) != {"server", "worker"}:
        raise RuntimeError(f"only {sorted(found)} told its calls")
    return found


def _ask(url: str, fields: dict[str, Any]) -> tuple[str, int]:
    """The answer's text, and in how many chunks it came."""
    messages = [{"role": "user", "content": _QUESTION}]
    body = {"model": "demo", "messages": messages, "stream": True, "temperature": 0, "max_tokens": 32, **fields}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=_WITHIN_S) as response:
        lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]), len(chunks)


if __name__ == "__main__":
    print(measure().table())
