"""The worker's end of its socket, and the ways in which a worker ends itself."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NoReturn

import msgspec
from typing_extensions import TypeVar

from backends.border.wire import Decoder, FrameEncoder, WireError, receive
from backends.messages import Command, Step

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from backends.messages.plain import Plain

C = TypeVar("C", default=Command)

EXIT_ORPHANED: Final = 0
EXIT_LOAD_FAILED: Final = 3
EXIT_ENGINE_ERROR: Final = 70
EXIT_OUT_OF_MEMORY: Final = 71


class Link(Generic[C]):
    """The child's end of the socket: whole frames, one sender at a time. `C` is what it hears."""

    def __init__(self, sock: socket.socket, decoder: Decoder[C]) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._encoder = FrameEncoder()
        self._decoder = decoder

    def send(self, report: Plain) -> None:
        """Send one report; a server that is gone ends this process."""
        with self._lock:
            frame = self._encoder.frame(report)
            try:
                self._sock.sendall(frame)
            except OSError:
                os._exit(EXIT_ORPHANED)

    def send_step(self, step: Step) -> None:
        """Send what a step has made; where that is more than a frame holds, as large images are, each event alone.

        Raises WireError where a single event is more.
        """
        try:
            self.send(step)
        except WireError:
            if len(step.events) < 2:
                raise
            for event in step.events[:-1]:
                self.send(Step(events=[event]))
            self.send(msgspec.structs.replace(step, events=step.events[-1:]))

    def receive(self) -> list[C]:
        """Block for the next commands; end-of-file or nonsense ends this process."""
        try:
            commands = receive(self._sock, self._decoder)
        except WireError as error:
            note(error)
            os._exit(EXIT_ENGINE_ERROR)
        if commands is None:
            os._exit(EXIT_ORPHANED)
        return commands


def note(error: BaseException) -> None:
    """Write type and place of an error to stderr; its text may hold a prompt, so that stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown place"
    sys.stderr.write(f"worker error: {type(error).__name__} at {where}\n")
    sys.stderr.flush()


def or_leave(work: Callable[[], None]) -> None:
    """Run a thread's work; a worker that lost one of its threads is of no use."""
    try:
        work()
    except BaseException as error:
        note(error)
        leave(EXIT_ENGINE_ERROR)


def leave(code: int) -> NoReturn:
    """End the process at once, after what it said on stderr is written."""
    sys.stderr.flush()
    os._exit(code)  # daemon threads sit in blocking calls; a normal interpreter exit could wait for them
