"""A process beside a worker in which chat templates are rendered: whatever a template makes it do, it can be ended.

A clock that only Python's lines see does not stop one line that computes for a minute in C. So a worker forks a
nursery before it has threads, a model or a card; the nursery forks one renderer after the other, and the worker talks
to the renderer. Where none was forked (tools, tests of templates alone) templates run in the process itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import msgspec

from backends.machine.kernel import call_me, die_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.prompts.template_program import Outcome, Program

GRACE_S: Final = 0.3
_BORN_WITHIN_S: Final = 5.0
"""Beyond the template's own limit: its Python lines end themselves and say so."""
LARGE_BYTES: Final = 256 << 10
"""A conversation from this size on may be what makes an honest template slow, so the template is not blamed for it."""
_MOST_PROGRAMS: Final = 8
_LENGTH: Final = struct.Struct("<Q")
_BESIDE: ContextVar[Renderer | None] = ContextVar("renderer", default=None)


class Ask(msgspec.Struct, frozen=True):
    """Render this; without variables, only compile it."""

    source: str
    variables: dict[str, Any] | None = None


class Rendering(Protocol):
    """One template, wherever it runs."""

    def check(self) -> Outcome | None:
        """What is wrong with the source; None when nothing is."""

    def run(self, variables: Mapping[str, Any]) -> Outcome:
        """Render it."""


def program_of(source: str) -> Rendering:
    """The template in the renderer of the load that is under way, or in this process where there is none."""
    beside = _BESIDE.get()
    return _Here(source) if beside is None else _Beside(source, beside)


@contextlib.contextmanager
def rendering_beside(renderer: Renderer | None) -> Iterator[None]:
    """Templates that are made within it run in this renderer."""
    token = _BESIDE.set(renderer)
    try:
        yield
    finally:
        _BESIDE.reset(token)


class _Here:
    def __init__(self, source: str) -> None:
        from backends.prompts.template_program import (
            compiled,  # here: a worker that renders beside itself needs no jinja2
        )

        self._program = compiled(source)

    def check(self) -> Outcome | None:
        from backends.prompts.template_program import Outcome

        return self._program if isinstance(self._program, Outcome) else None

    def run(self, variables: Mapping[str, Any]) -> Outcome:
        from backends.prompts.template_program import Outcome

        return self._program if isinstance(self._program, Outcome) else self._program.run(variables)


class _Beside:
    """In the renderer. A template that had to be ended over a small conversation is not tried again."""

    def __init__(self, source: str, renderer: Renderer) -> None:
        self._source = source
        self._renderer = renderer
        self._bad: Outcome | None = None

    def check(self) -> Outcome | None:
        outcome = self._renderer.ask(Ask(self._source))[0]
        return None if outcome.problem is None else outcome

    def run(self, variables: Mapping[str, Any]) -> Outcome:
        if self._bad is not None:
            return self._bad
        outcome, n_bytes = self._renderer.ask(Ask(self._source, dict(variables)))
        if outcome.problem == "time" and n_bytes <= LARGE_BYTES:
            told = " over a short conversation, so it is not tried again. hint: /v1/completions needs no template"
            self._bad = msgspec.structs.replace(outcome, text=told)
        return outcome if self._bad is None else self._bad


class Renderer:
    """The worker's end. One question at a time; threads take turns."""

    def __init__(self, nursery: socket.socket, nursery_pid: int) -> None:
        from backends.prompts.template_program import Outcome

        self._nursery = nursery
        self._nursery_pid = nursery_pid
        self._turn = threading.Lock()
        self._line: socket.socket | None = None
        self._pidfd = -1
        self._late = 0
        """Answers of the nursery that were not waited for."""
        self._decoder = msgspec.msgpack.Decoder(Outcome)

    def ask(self, asked: Ask) -> tuple[Outcome, int]:
        """What came of it, and the bytes of the question."""
        from backends.prompts.template_program import RENDER_LIMIT_S, Outcome

        try:
            raw = msgspec.msgpack.encode(asked)
        except (UnicodeEncodeError, OverflowError, TypeError):
            return Outcome("the conversation holds what is no text", "failed"), 0
        with self._turn:
            try:
                line = self._begun()
            except OSError:
                return Outcome("no process to render in could be started", "failed"), len(raw)
            try:
                line.settimeout(RENDER_LIMIT_S + GRACE_S)
                deadline = time.monotonic() + RENDER_LIMIT_S + GRACE_S
                line.sendall(_LENGTH.pack(len(raw)) + raw)
                answer = _received(line, deadline)
            except TimeoutError:
                self._end()
                return Outcome("", "time"), len(raw)
            except OSError:
                answer = None
            if answer is None:
                self._end()
                return Outcome("it ended the process that renders it", "failed"), len(raw)
            return self._decoder.decode(answer), len(raw)

    def close(self) -> None:
        """End both processes."""
        with self._turn:
            self._end()
        self._nursery.close()
        os.waitpid(self._nursery_pid, 0)

    def _begun(self) -> socket.socket:
        """A line to a renderer that runs."""
        if self._line is None:
            self._forget_late()
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._nursery, [b"renderer"], [theirs.fileno()])
            self._nursery.settimeout(_BORN_WITHIN_S)
            try:
                told = self._nursery.recv(32)
                if not told:
                    raise OSError("the nursery is gone")
                pidfd = os.pidfd_open(int(told))
            except OSError as error:  # TimeoutError among them: it is no template's fault
                ours.close()
                self._late += isinstance(error, TimeoutError)
                raise OSError("no process to render in could be started") from error
            self._line, self._pidfd = ours, pidfd
        return self._line

    def _forget_late(self) -> None:
        """Take answers of the nursery that were not waited for: their renderers find their lines closed, and end."""
        self._nursery.settimeout(_BORN_WITHIN_S)
        while self._late:
            self._nursery.recv(32)
            self._late -= 1

    def _end(self) -> None:
        """End the renderer; the next question has a new one begun."""
        if self._line is not None:
            self._line.close()
            self._line = None
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1


def fork_beside(*, keep_out: int) -> Renderer:
    """Fork the nursery; only where there is one thread. `keep_out` is a file that it must not hold. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.close(keep_out)
            _nurse(theirs, parent)
        finally:
            os._exit(0)
    theirs.close()
    return Renderer(ours, pid)


def _nurse(line: socket.socket, parent: int) -> NoReturn:
    """Fork a renderer whenever one is asked for; ends with the worker."""
    die_with(parent)
    call_me(b"onecard-nursery")
    _silence()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # how a renderer ended is not asked
    me = os.getpid()
    from backends.prompts import template_program  # noqa: F401 - a renderer shall not wait for it

    while True:
        packet, files, _, _ = socket.recv_fds(line, 64, 1)
        if not packet:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            line.close()
            _render(socket.socket(fileno=files[0]), me)
        for fd in files:
            os.close(fd)
        line.send(str(pid).encode())


def _silence() -> None:
    """Hold none of the worker's pipes: the server waits for their end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _render(line: socket.socket, parent: int) -> NoReturn:
    """Answer one question after the other."""
    try:
        die_with(parent)
        call_me(b"onecard-render")
        _answer_all(line)
    finally:
        os._exit(0)


def _answer_all(line: socket.socket) -> None:
    from backends.prompts.template_program import Outcome, compiled

    programs: dict[str, Program | Outcome] = {}
    decoder = msgspec.msgpack.Decoder(Ask)
    while (raw := _received(line, None)) is not None:
        asked = decoder.decode(raw)
        program = programs.get(asked.source)
        if program is None:
            if len(programs) >= _MOST_PROGRAMS:
                programs.clear()
            program = programs[asked.source] = compiled(asked.source)
        if isinstance(program, Outcome):
            outcome = program
        else:
            outcome = Outcome() if asked.variables is None else program.run(asked.variables)
        told = _encoded(outcome)
        line.sendall(_LENGTH.pack(len(told)) + told)


def _encoded(outcome: Outcome) -> bytes:
    try:
        return msgspec.msgpack.encode(outcome)
    except UnicodeEncodeError:
        told = msgspec.structs.replace(outcome, text=outcome.text.encode("utf-8", "replace").decode())
        return msgspec.msgpack.encode(told)


def _received(line: socket.socket, deadline: float | None) -> bytes | None:
    """One message; None at the end of the line. Raises TimeoutError."""
    head = _exactly(line, _LENGTH.size, deadline)
    return None if head is None else _exactly(line, _LENGTH.unpack(head)[0], deadline)


def _exactly(line: socket.socket, n_bytes: int, deadline: float | None) -> bytes | None:
    got = bytearray()
    while len(got) < n_bytes:
        if deadline is not None:
            line.settimeout(max(0.001, deadline - time.monotonic()))
        part = line.recv(min(1 << 20, n_bytes - len(got)))
        if not part:
            return None
        got += part
    return bytes(got)
