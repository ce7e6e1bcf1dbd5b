"""A Python that has imported what `onecard` imports: commands and servers of tests are copies of it.

To import takes most commands 0.8 s of a processor, which a copy does not take again. Whatever else a process has is its
own: arguments, environment, folder, standard files, signals, and the way it ends. `tests/cli/test_serve.py`
and `test_serve_ends.py` start Python itself, those of `test_outputs.py` too that close standard files, and whatever is
asked here in another locale or with options of Python's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.present import present

ROOT = Path(__file__).resolve().parents[1]
_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "MALLOC_", "LD_", "ONECARD_BACKENDS")
"""What only a Python that starts heeds, or one that imports the backends."""
_OURS = dict(os.environ)
"""With which the process starts that makes copies, whatever a test has changed meanwhile."""
_OPTIONS = {"stdin", "stdout", "stderr", "env", "cwd"}
_LARGEST = 1 << 20


class Copy:
    """A process, as `subprocess.Popen` has it: what tests ask of one."""

    def __init__(self, told: socket.socket, ends: Mapping[str, IO[str]]) -> None:
        self._told = told
        self.stdin, self.stdout, self.stderr = (ends.get(name) for name in ("stdin", "stdout", "stderr"))
        self.returncode: int | None = None
        self.pid = int(self._word())

    def _word(self) -> str:
        word = self._told.recv(32).decode()
        if not word:
            raise RuntimeError("the process that makes copies has ended")
        return word

    def poll(self) -> int | None:
        """How it ended, if it has."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._word()))
            self._told.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired, as ever."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        ended = self.poll()
        assert ended is not None
        return ended

    def send_signal(self, number: int) -> None:
        """To a process that has ended: nothing."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Copy


class Warm:
    """The process that makes copies, seen from the tests."""

    def __init__(self) -> None:
        self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=_OURS, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._lock = threading.Lock()

    def start(self, request: Mapping[str, Any], files: Sequence[int]) -> socket.socket:
        """The socket on which its number comes, and then its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock, theirs:
            socket.send_fds(self._asked, [json.dumps(request).encode()], [*files, theirs.fileno()])
        return ours


@functools.cache
def _warm() -> Warm:
    """Of this process, until it ends."""
    return Warm()


def heeds(env: Mapping[str, str]) -> bool:
    """Whether a copy does all that a Python started with this would."""

    def heeded(given: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in given.items() if name.startswith(_AT_START) and value != str(ROOT)}

    return heeded(env) == heeded(_OURS)


def popen(module: str, arguments: Sequence[str], **options: Any) -> Process:
    """`subprocess.Popen` of `python -m module`, in text, with `_OPTIONS`. Raises TypeError: a copy heeds no others."""
    if others := options.keys() - _OPTIONS:
        raise TypeError(f"a copy heeds no {', '.join(sorted(others))}")
    env, cwd = options.get("env") or os.environ, os.fspath(options.get("cwd") or Path.cwd())
    if not heeds(env):
        return subprocess.Popen([sys.executable, "-m", module, *arguments], text=True, **options)
    ends: dict[str, IO[str]] = {}
    with contextlib.ExitStack() as stack:
        files = [_file(name, options.get(name), ends, stack) for name in ("stdin", "stdout", "stderr")]
        told = _warm().start({"module": module, "arguments": [*arguments], "env": dict(env), "cwd": cwd}, files)
    return Copy(told, ends)


def _file(name: str, wished: Any, ends: dict[str, IO[str]], stack: contextlib.ExitStack) -> int:
    """The copy's end of a pipe, or what it shares with us."""
    if wished == subprocess.PIPE:
        reads, writes = os.pipe()
        theirs, ours = (reads, writes) if name == "stdin" else (writes, reads)
        ends[name] = os.fdopen(ours, "w" if name == "stdin" else "r")
    elif wished == subprocess.DEVNULL:
        theirs = os.open(os.devnull, os.O_RDWR)
    else:
        theirs = os.dup(("stdin", "stdout", "stderr").index(name) if wished is None else wished.fileno())
    stack.callback(os.close, theirs)
    return theirs


def run(module: str, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of `python -m module`, its output captured: with input, timeout, and the options of `popen`."""
    text, timeout_s = options.pop("input", None), options.pop("timeout", 60)
    command = [sys.executable, "-m", module, *arguments]
    if not heeds(options.get("env") or os.environ):
        given = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, **given, **options
        )
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    child = popen(module, arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    heard: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda name=name: heard.update({name: getattr(child, name).read()}), daemon=True)
        for name in ("stdout", "stderr")
    ]
    for reader in readers:
        reader.start()
    if text is not None:
        with contextlib.suppress(BrokenPipeError), present(child.stdin) as pipe:
            pipe.write(text)
    ends_at = time.monotonic() + timeout_s
    for reader in readers:
        reader.join(max(0.0, ends_at - time.monotonic()))
    if any(reader.is_alive() for reader in readers):
        child.kill()
        child.wait(10)
        raise subprocess.TimeoutExpired(command, timeout_s)
    for name in ("stdout", "stderr"):
        getattr(child, name).close()
    try:
        ended = child.wait(max(0.0, ends_at - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(10)
        raise subprocess.TimeoutExpired(command, timeout_s) from None
    return subprocess.CompletedProcess(command, ended, heard["stdout"], heard["stderr"])


def _next_copy(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Make copies until those who ask have ended; returns in each copy.

    A Ctrl-C goes to the whole group: it is for the copies and for who asked, who is to be told how they ended.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, fds, _, _ = socket.recv_fds(asked, _LARGEST, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            told = socket.socket(fileno=fds.pop())
            if (pid := os.fork()) == 0:
                signal.signal(signal.SIGINT, interrupt)
                told.close()
                return json.loads(request), fds
            for fd in fds:
                os.close(fd)
            told.send(str(pid).encode())
            told.send(str(os.waitpid(pid, 0)[1]).encode())
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """What a process has from its start."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["arguments"]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        raw = os.fdopen(number, "rb" if number == 0 else "wb", 0 if number and old.write_through else -1, closefd=False)
        new = io.TextIOWrapper(
            raw,
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=old.line_buffering if number == 2 else os.isatty(number) and not old.write_through,
            write_through=old.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _import_all() -> None:
    """All commands and the server, with what they import."""
    import server.app
    import server.cli

    for found in pkgutil.walk_packages(server.cli.__path__, "server.cli."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    request, fds = _next_copy(asked)
    _become(request, fds)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
