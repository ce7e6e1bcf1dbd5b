"""Models fetched while the server runs: `onecard pull` as a child process, whose progress every asker follows.

Owns the children. A fetch that no one follows any more is ended; what has come is kept, and the next one goes on there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from server.settings.sections import MemorySection

Step = dict[str, Any]
"""A line of the command's progress: `status`, and of a file `digest`, `total` and `completed`."""
PULL: Final = (sys.executable, "-m", "server.cli", "pull", "--json-lines")
MOST_AT_ONCE: Final = 4
_END_S: Final = 5.0
_KEPT_WORDS: Final = 4096
_USAGE, _UNREACHABLE = 2, 4
"""Exit codes of the command, as its `--help` has them."""


class PullError(Exception):
    """A fetch that came to nothing; the text is the command's own sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.is_usage = exit_code == _USAGE
        self.is_unreachable = exit_code == _UNREACHABLE


@dataclass
class _Pull:
    """One fetch, as far as it has come."""

    task: asyncio.Task[None] | None = None
    steps: list[Step] = field(default_factory=list)
    """Of a file only the last one: so many as there are files, however long it takes."""
    reference: str | None = None
    """What may stand as the model's path, once it is there."""
    over: bool = False
    problem: PullError | None = None
    """Why it came to nothing."""
    n_followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, step: Step) -> None:
        """The command has said something."""
        if "reference" in step:
            self.reference = step["reference"]
        elif self.steps and self.steps[-1]["status"] == step["status"]:
            self.steps[-1] = step
        else:
            self.steps.append(step)
        self._wake()

    def end(self, problem: PullError | None) -> None:
        """It is over; only the first end counts."""
        if not self.over:
            self.over, self.problem = True, problem
            self._wake()

    def stop(self) -> None:
        """Have its child ended; once, because another cancellation would cut short the wait for its end."""
        if self.task is not None and not self.task.cancelling():
            self.task.cancel()

    async def told(self) -> AsyncIterator[Step]:
        """Every step from the first one on, and of a file's those that are not outdated. Raises PullError."""
        n_told, last = 0, None
        while True:
            changed, over = self.changed, self.over
            again = int(n_told > 0 and self.steps[n_told - 1] is not last)
            for step in (fresh := self.steps[n_told - again :]):
                last = step
                yield step
            n_told += len(fresh) - again
            if over:
                break
            await changed.wait()
        if self.problem is not None:
            raise self.problem

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Puller:
    """All fetches of one server, by what was asked for. For the event loop's thread only."""

    def __init__(self, memory: MemorySection, *, command: Sequence[str], tell: Callable[..., None]) -> None:
        self._command = command
        self._environment = {**os.environ, **_as_variables(memory)}
        self._tell = tell
        self._running: dict[str, _Pull] = {}

    async def follow(self, wanted: str) -> AsyncGenerator[Step]:
        """The steps of a fetch, begun where none runs; the last one holds its `reference`.

        `wanted` is what `onecard pull` takes. Raises PullError. When its last follower leaves, the fetch is ended.
        """
        pull = await self._joined(wanted)
        pull.n_followers += 1
        try:
            async for step in pull.told():
                yield step
            yield {"status": "success", "reference": pull.reference}
        finally:
            pull.n_followers -= 1
            if pull.n_followers == 0:
                pull.stop()

    def on_change(self, what: str, _figures: dict[str, object]) -> None:
        """What the pool tells: a server that ends fetches nothing more."""
        if what == "draining":
            for pull in self._running.values():
                pull.end(PullError("the server is shutting down; what has come is kept"))
                pull.stop()

    async def close(self) -> None:
        """End what runs, and wait for the children's end."""
        pulls = [*self._running.values()]
        for pull in pulls:
            pull.stop()
        await asyncio.gather(*(pull.task for pull in pulls if pull.task is not None), return_exceptions=True)

    async def _joined(self, wanted: str) -> _Pull:
        """The fetch that runs, or a new one, once one that is being ended is gone. Raises PullError."""
        while (pull := self._running.get(wanted)) is not None:
            if pull.task is None or not pull.task.cancelling():
                return pull
            await asyncio.wait({pull.task})
        if len(self._running) >= MOST_AT_ONCE:
            raise PullError(f"{len(self._running)} models are being fetched already. hint: wait until one is there")
        pull = self._running[wanted] = _Pull()
        pull.task = asyncio.create_task(self._fetch(wanted, pull), name=f"pull {wanted}")
        return pull

    async def _fetch(self, wanted: str, pull: _Pull) -> None:
        self._tell("pulling", model=wanted)
        problem: PullError | None = PullError("`onecard pull` has said what the server does not understand")
        try:
            await self._run(wanted, pull)
            problem = None
            self._tell("pulled", model=wanted, path=pull.reference)
        except asyncio.CancelledError:
            problem = PullError("no one waits for it any more; what has come is kept")
            self._tell("pull_stopped", model=wanted, reason=problem.message)
            raise
        except (PullError, OSError, ValueError) as error:
            problem = error if isinstance(error, PullError) else PullError(f"`onecard pull` cannot be run: {error}")
            self._tell("pull_failed", model=wanted, reason=problem.message)
        finally:
            del self._running[wanted]
            pull.end(problem)

    async def _run(self, wanted: str, pull: _Pull) -> None:
        """Until the command has ended. Raises PullError."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            "--",
            wanted,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            words = asyncio.create_task(_last_line(process.stderr))
            async for line in process.stdout:
                pull.take(json.loads(line))
            told, code = await words, await process.wait()
        finally:
            await _end(process)
        if code != 0 or pull.reference is None:
            raise PullError(told or f"`onecard pull` ended with {code} and said nothing", code)


async def _last_line(stream: asyncio.StreamReader) -> str:
    """The last line of what a command says, without its name."""
    kept = b""
    while piece := await stream.read(_KEPT_WORDS):
        kept = (kept + piece)[-_KEPT_WORDS:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("onecard: ") if lines else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    """See that a child has ended: asked first, so that it clears up behind itself."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_S)


def _as_variables(memory: MemorySection) -> Mapping[str, str]:
    """The running server's budgets for the child, which knows the server's configuration and not its flags."""
    return {f"ONECARD_MEMORY__{name.upper()}": str(getattr(memory, name)) for name in ("device", "budget", "reserve")}
