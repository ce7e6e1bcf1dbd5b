"""One life of a training process: what it says is kept, and it is let go, held or ended.

What follows from its end is the runner's business. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from backends.border.child import start_training
from backends.machine.crash_reason import essence
from backends.messages.training import (
    CheckpointSaved,
    Leave,
    MicroBatchHalved,
    Train,
    TrainEvaluated,
    TrainFailed,
    TrainFinished,
    TrainLeft,
    TrainStarted,
    TrainStep,
)
from server.tuning.job import JobProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.border.child import Child
    from backends.messages.training import Recipe, TrainReport
    from server.tuning.job import Job, JobRecord
    from server.tuning.store import TuningStore

_LINGER_S: Final = 5.0
_KEPT_EVENTS: Final = 200
"""Of single steps, of one job; the losses of all of them are kept beside."""


@dataclass(frozen=True)
class Crashed:
    """It ended without a word of its own."""

    why: str


End = TrainFinished | TrainLeft | TrainFailed | Crashed


class Session:
    """See the module's text. `on_step` is told of every step."""

    def __init__(self, job: Job, store: TuningStore, module: str, on_step: Callable[[TrainStep], None]) -> None:
        self.job = job
        self.why_leaving: str | None = None
        """What it leaves for; None: it is not asked to."""
        self.held = False
        """It is stopped where it is, and keeps its memory."""
        self.started: TrainStarted | None = None
        self.last: TrainStep | None = None
        self._store, self._module, self._on_step = store, module, on_step
        self._said: asyncio.Queue[TrainReport | None] = asyncio.Queue()
        self._end: TrainFinished | TrainLeft | TrainFailed | None = None
        self._child: Child[TrainReport] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.progress = job.record.progress

    async def run(self, on_pid: Callable[[int], None]) -> End:
        """Until the process is gone. Raises OSError where there can be none, and ApiError where nothing can be kept."""
        child = self._child = await start_training(self, self._module)
        try:
            on_pid(child.pid)
            recipe = self.job.record.recipe
            assert recipe is not None
            child.send(Train(recipe))
            if self.why_leaving is not None:
                child.kill()
            while batch := await self._heard():
                await asyncio.to_thread(self._keep, batch)
            return await self._ended(child)
        finally:
            child.kill()
            await child.wait(_LINGER_S)
            if self._timer is not None:
                self._timer.cancel()

    def leave(self, why: str, within_s: float) -> None:
        """Have it save and go, at once where it has not begun; it is ended where that takes longer."""
        if self.why_leaving is not None:
            return
        self.why_leaving = why
        if self._child is None:
            return
        self.go_on()
        if self.started is None:
            self._child.kill()
            return
        self._child.send(Leave())
        self._timer = asyncio.get_running_loop().call_later(within_s, self._child.kill)

    def end(self, why: str) -> None:
        """End it as it is: nothing of it is wanted any more."""
        self.why_leaving = self.why_leaving or why
        if self._child is not None:
            self._child.kill()

    def hold(self) -> None:
        """Stop it where it is, until `go_on`: others compute."""
        if self._child is not None and not self.held and self.why_leaving is None:
            self.held = True
            self._child.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it compute."""
        if self._child is not None and self.held:
            self.held = False
            self._child.signal(signal.SIGCONT)

    # What the process says: `backends.border.child.Owner`

    def received(self, report: TrainReport) -> None:
        """Take a report from the socket."""
        match report:
            case TrainFinished() | TrainLeft() | TrainFailed():
                self._end = self._end or report
            case TrainStarted():
                self.started = report
                self._said.put_nowait(report)
            case TrainStep():
                self.last = report
                self._on_step(report)
                self._said.put_nowait(report)
            case _:
                self._said.put_nowait(report)

    def babbled(self) -> None:
        """Bytes have come that are no report."""
        if self._child is not None:
            self._child.kill()

    def disconnected(self) -> None:
        """The socket is closed: the process is dying, or has to."""
        self._said.put_nowait(None)

    # How

    async def _heard(self) -> list[TrainReport]:
        """What was said since the last time, waited for; nothing once all is said."""
        batch: list[TrainReport] = []
        while not batch or not self._said.empty():
            report = await self._said.get()
            if report is None:
                self._said.put_nowait(None)  # for the next time
                break
            batch.append(report)
        return batch

    async def _ended(self, child: Child[TrainReport]) -> End:
        asyncio.get_running_loop().call_later(_LINGER_S, child.kill)
        status = await child.wait(_LINGER_S)
        if self._end is not None:
            return self._end
        by = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        said = essence(child.stderr)
        return Crashed(f"{by}: {said}" if said else by)

    def _keep(self, reports: Sequence[TrainReport]) -> None:
        """On a thread, in the order in which they came."""
        steps: list[TrainStep] = []
        for report in reports:
            if isinstance(report, TrainStep):
                steps.append(report)
                continue
            self._keep_steps(steps)
            steps = []
            self._keep_one(report)
        self._keep_steps(steps)

    def _keep_steps(self, steps: Sequence[TrainStep]) -> None:
        if not steps:
            return
        self._store.add_steps(self.job, steps)
        n_steps = self.started.steps if self.started is not None else steps[-1].step
        every = max(1, -(-n_steps // _KEPT_EVENTS))
        for one in steps:
            if one.step % every == 0 or one.step == n_steps:
                told = f"Step {one.step}/{n_steps}: training loss={one.loss:.4f}"
                self._store.tell(self.job, told, metrics=True, **msgspec.structs.asdict(one))
        self.progress = self._progress(steps[-1], n_steps)
        self._change(lambda record: setattr(record, "progress", self.progress))

    def _progress(self, last: TrainStep, n_steps: int) -> JobProgress:
        recipe = self.job.record.recipe
        n_epochs = 1 if recipe is None else recipe.n_epochs
        epoch = round(last.step * n_epochs / max(1, n_steps), 3)
        return JobProgress(last.step, n_steps, epoch, last.loss, last.tokens, round(last.seconds_left, 1))

    def _keep_one(self, report: TrainReport) -> None:
        tell, job = self._store.tell, self.job
        match report:
            case TrainStarted():
                self._store.begin_at(job, report.resumed_step)
                parts = f"{report.examples} examples, {report.trainable_parameters} trained parameters"
                goes_on = f", from step {report.resumed_step} on" if report.resumed_step else ""
                tell(job, f"Training has started: {report.steps} steps, {parts}{goes_on}")
                if report.cut_examples:
                    told = f"{report.cut_examples} examples were longer than max_length and lost their ends"
                    tell(job, told, level="warn")
            case TrainEvaluated():
                self._store.add_evaluation(job, report)
                told = (
                    f"loss={report.loss:.4f}, perplexity={report.perplexity:.2f}, accuracy={report.token_accuracy:.3f}"
                )
                tell(job, f"Epoch {report.epoch}: {told}", metrics=True, **msgspec.structs.asdict(report))
            case CheckpointSaved():
                self._store.add_checkpoint(job, report.step)
                self._change(lambda record: setattr(record, "crashes", 0))
                tell(job, f"Checkpoint saved at step {report.step}", step=report.step)
            case MicroBatchHalved():
                self._change(lambda record: _halve(record, report))
                now = f"micro-batch {report.micro_batch}, accumulation {report.accumulation}"
                tell(job, f"Out of memory, so the micro-batch is halved ({now}): {report.why}", level="warn")
            case _:
                pass  # the last word is the runner's to keep

    def _change(self, edit: Callable[[JobRecord], None]) -> None:
        self._store.change(self.job.id, edit=edit)


def _halve(record: JobRecord, said: MicroBatchHalved) -> None:
    """The next process begins with what this one has found to fit."""
    recipe: Recipe | None = record.recipe
    if recipe is not None:
        record.recipe = msgspec.structs.replace(recipe, micro_batch=said.micro_batch, accumulation=said.accumulation)
