"""A training process as the server starts it, for tests: a recipe goes in, all reports until its end come out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from backends.border.child import environment
from backends.border.wire import FrameEncoder, receive, train_report_decoder
from backends.messages.training import TRAIN_ENDS, Leave, Recipe, Train, TrainReport

R = TypeVar("R")


class Ends(Protocol):
    """A process whose end can be waited for."""

    def wait(self) -> int: ...


P = TypeVar("P", bound=Ends)


class Trainer(Generic[P]):
    """One process and our end of its socket."""

    def __init__(self, process: P, ours: socket.socket) -> None:
        self.process = process
        self._socket = ours
        self._decoder = train_report_decoder()
        self._waiting: list[TrainReport] = []
        self.reports: list[TrainReport] = []

    def send(self, command: Train | Leave) -> None:
        self._socket.sendall(FrameEncoder().frame(command))

    def hear(self) -> TrainReport | None:
        """The next report; None at the end of the process."""
        while not self._waiting:
            found = receive(self._socket, self._decoder)
            if found is None:
                return None
            self._waiting += found
        self.reports.append(self._waiting.pop(0))
        return self.reports[-1]

    def until(self, is_it: Callable[[TrainReport], bool]) -> TrainReport:
        while (report := self.hear()) is not None:
            if is_it(report):
                return report
        raise AssertionError(f"it has ended with {self.process.wait()}: {self.reports[-1:]}")

    def end(self) -> TrainReport:
        return self.until(lambda report: isinstance(report, TRAIN_ENDS))

    def of(self, kind: type[R]) -> list[R]:
        return [report for report in self.reports if isinstance(report, kind)]


@contextmanager
def training(recipe: Recipe, **variables: str) -> Iterator[Trainer[subprocess.Popen[str]]]:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    command = [sys.executable, "-m", "backends.training", "--fd", str(fd), "--parent", str(os.getpid())]
    env = {**environment(os.environ), "OMP_NUM_THREADS": "1", **variables}
    with ours, subprocess.Popen(command, pass_fds=(fd,), env=env, text=True) as process:
        theirs.close()
        trainer = Trainer(process, ours)
        try:
            trainer.send(Train(recipe))
            yield trainer
        finally:
            process.kill()


def trained(recipe: Recipe) -> Trainer[subprocess.Popen[str]]:
    """To its end."""
    with training(recipe) as trainer:
        trainer.end()
        assert trainer.process.wait() == 0
    return trainer
