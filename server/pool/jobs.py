"""The jobs that have no terminal event yet, from their submission to the one place where a job ends.

Owns them and what their readers get. Which of them runs is the scheduler's business. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from msgspec.structs import replace

from backends.messages import BACKGROUND_PRIORITY, Delta, Embed, Failed, Finished, Generate, Part, Rerank, Started
from backends.plan import ANSWER_TOKENS, AUTO_CONTEXT
from backends.weight import media_bytes, prompt_bytes, text_bytes
from server.accounts.account import Spent
from server.asker import ASKER
from server.metric_table import REJECTIONS
from server.metrics import RequestMeter
from server.pool.foreground import Foreground
from server.pool.live import Live, asked_by, trace_of
from server.pool.resident import NO_LONGER
from server.pool.stream import Stream
from server.scheduling.budget import Refused
from server.scheduling.decisions import Abort, Dispatch, ModelState, Preempt, Reject, Stay

if TYPE_CHECKING:
    from backends.border.worker import Exit, Worker
    from backends.messages import Event, Job, Step
    from server.pool.overview import Overview
    from server.pool.parts import PoolParts
    from server.pool.resident import Resident


def _context_of(resident: Resident) -> int:
    """Tokens of the loaded model's context; 0 of a model that reads no text."""
    return resident.ready.text.context if resident.ready is not None and resident.ready.text is not None else 0


def _text_bytes(job: Generate) -> int:
    return prompt_bytes(job.prompt) - media_bytes(job.prompt)


class Jobs:
    """See the module's text."""

    def __init__(self, parts: PoolParts, overview: Overview) -> None:
        self._parts = parts
        self._overview = overview
        self._live: dict[str, Live] = {}
        self.foreground = Foreground()
        self.none_left = asyncio.Event()
        self.none_left.set()

    def submit(self, resident: Resident, job: Job, *, priority: int, keep_alive_s: float | None) -> Stream:
        """Take a job; what is wrong with it comes as its `Failed` event. Raises ApiError 429 for its key's limit."""
        now, name = self._parts.clock(), resident.name
        stream = Stream(
            name,
            job.id,
            cancel=self._cancel,
            loading=lambda: self._overview.is_loading(name),
            outlook=lambda: self._overview.outlook(resident, job.id),
        )
        if job.id in self._live:
            stream.push(Failed(id=job.id, code="internal_error", message="two requests have the same id"))
            return stream
        asker = ASKER.get()
        live = Live(job, name, stream, RequestMeter(resident.metrics, job, now, not asker.background), now, asker)
        priority = BACKGROUND_PRIORITY if asker.background else priority + _reserve(live, now)
        self._live[job.id] = live
        self.none_left.clear()
        self._look_again_before_refusing(resident)
        actions = self._parts.scheduler.submit(
            job.id,
            name,
            sequences=job.sequences,
            priority=priority + resident.entry.config.priority,
            keep_alive_s=keep_alive_s,
            patient=asker.background,
            context=self._likely_context(resident, job),
            now=now,
        )
        self._parts.perform(actions)
        if job.sequences and not asker.background:
            live.counted = job.id in self._live
            if live.counted:
                self.foreground.begun(name, waits=live.dispatched_at is None)
        return stream

    def refuse(self, name: str, job: Job) -> Stream:
        """The end of a job whose model was taken out of the configuration while its request was read."""
        stream = Stream(name, job.id, cancel=lambda _: None, loading=lambda: False, outlook=lambda: None)
        stream.push(Failed(id=job.id, code="model_not_found", message=NO_LONGER.format(name)))
        return stream

    def expel(self) -> None:
        """End every job that is left, as the server's doing and not the client's."""
        for job_id, live in list(self._live.items()):
            live.abort = live.abort or Abort(job_id, "draining", "the server is shutting down")
            self._cancel(job_id)

    # What the scheduler wants

    def dispatch(self, action: Dispatch) -> None:
        """Give a job to its model's worker."""
        now = self._parts.clock()
        live, resident = self._live[action.job_id], self._parts.residents[action.model]
        assert resident.worker is not None
        assert resident.ready is not None
        if live.meter.started:  # it goes on where it was preempted
            self._give(resident, live)
            return
        live.meter.dispatched(now)
        live.dispatched_at = now
        stream = live.stream
        stream.queue_ms = (now - live.submitted_at) * 1000
        memory = self._parts.budget.memory
        assert memory is not None
        stream.ready = resident.ready
        stream.gpu_layers = resident.layers_on(memory.device)
        stream.kept_from_card = resident.kept_from_card
        if (waited_s := resident.load_wait_s(live.submitted_at)) is not None:
            stream.load_ms = waited_s * 1000
            resident.metrics.swap_wait.observe(waited_s)
        self._give(resident, live)

    def run_as_it_is(self, action: Stay) -> None:
        """A job's model gets no longer context for it: what fits is run with what there is, the rest is too long."""
        live, resident = self._live[action.job_id], self._parts.residents[action.model]
        resident.metrics.growths["refused"].inc()
        self._parts.tell("growth_refused", model=live.model, reason=action.reason, needs_context=action.context)
        live.grows = False
        if live.least_context <= _context_of(resident):
            self._give(resident, live)
            return
        most = max(self._parts.budget.most_context(live.model) or 0, _context_of(resident))
        message = (
            f"This model's maximum context length is {most} tokens. However, your prompt resulted in "
            f"{live.least_context} tokens. Please reduce the length of the prompt. {action.reason}"
        )
        self._finish(live, Failed(id=live.job.id, code="context_length_exceeded", message=message, param="prompt"))
        self._parts.perform(self._parts.scheduler.on_terminal(live.job.id, self._parts.clock(), finished=False))

    def reject(self, action: Reject) -> None:
        """End a job that no worker holds."""
        live = self._live[action.job_id]
        if action.code != "cancelled":
            self._parts.tell(
                "rejected" if action.code in REJECTIONS else "failed",
                model=live.model,
                code=action.code,
                reason=action.message,
                **asked_by(live),
            )
        failed = Failed(id=action.job_id, code=action.code, message=action.message, retry_after_s=action.retry_after_s)
        self._finish(live, failed)

    def abort(self, action: Abort) -> None:
        """Ask a job's worker to end it; the terminal event comes as always.

        Where its time is over, what it has generated is its answer; where the reader or the server goes, nothing is.
        """
        live = self._live[action.job_id]
        live.abort = live.abort or action
        worker = self._parts.residents[live.model].worker
        if worker is not None and action.code == "cancelled":
            worker.cancel(live.job.id)
        elif worker is not None:
            worker.cut_short(live.job.id, live.abort.code)

    def preempt(self, action: Preempt) -> None:
        """Ask a job's worker to stop it, so that it goes on in the next one."""
        worker = self._parts.residents[action.model].worker
        self._parts.tell("preempting", model=action.model, reason="growth", **asked_by(self._live[action.job_id]))
        if worker is not None:
            worker.preempt(action.job_id)

    # What workers report

    def on_step(self, worker: Worker, step: Step) -> None:
        """Hand out the events of one engine step."""
        now, resident = self._parts.clock(), self._parts.residents[worker.spec.name]
        resident.metrics.step(step)
        resident.drafted.count(step)
        resident.pace.count(step.n_prefill if step.n_inputs else step.n_tokens, now)
        self._parts.learn_speed(resident, step, now)
        for event in step.events:
            live = self._live.get(event.id)
            if live is None:
                continue
            if isinstance(event, Delta):
                live.answered = True
                live.first_at = live.first_at or now
                live.meter.delta(event, now)
                live.stream.push(event)
            else:
                self._hand_out(live, event, now)

    def on_exit(self, how: Exit) -> frozenset[str]:
        """End the jobs of a worker that is gone, but for those that may be run again: these are the answer."""
        orphans = [(live, failed) for failed in how.failed if (live := self._live.get(failed.id)) is not None]
        retry = frozenset(
            live.job.id
            for live, failed in orphans
            if failed.code in ("worker_crashed", "out_of_memory") and not live.answered
        )
        for live, failed in orphans:
            if failed.id not in retry:
                self._finish(live, failed)
        return retry

    # How

    def _give(self, resident: Resident, live: Live) -> None:
        """To the worker, which tells where a job would need a longer context that there might be."""
        assert resident.worker is not None
        job = live.job
        if isinstance(job, Generate):
            bound = self._parts.budget.context_bound(live.model) if live.grows else 0
            job = replace(job, grows_to=bound if bound > _context_of(resident) else 0, resume=live.resume)
        resident.worker.submit(job)

    def _likely_context(self, resident: Resident, job: Job) -> int:
        """Tokens of context that a job seems to need of a model that is not loaded; 0 where it seems to need no more
        than the model begins with.
        """
        unloaded = self._parts.scheduler.state(resident.name) is ModelState.UNLOADED
        bound = self._parts.budget.context_bound(resident.name) if unloaded and isinstance(job, Generate) else 0
        if bound <= AUTO_CONTEXT or not isinstance(job, Generate):
            return 0
        answer = ANSWER_TOKENS if job.max_tokens is None else min(job.max_tokens, ANSWER_TOKENS)
        likely = round(_text_bytes(job) * resident.tokens_per_byte) + answer
        return min(likely, bound) if likely > AUTO_CONTEXT else 0

    def _look_again_before_refusing(self, resident: Resident) -> None:
        """A file that is too large may have been replaced by a smaller one: then the load itself will tell."""
        budget, unloaded = self._parts.budget, self._parts.scheduler.state(resident.name) is ModelState.UNLOADED
        if unloaded and isinstance(budget.need(resident.name, smaller_by=0), Refused):
            budget.files.forget_if_changed(resident.entry)
            budget.forget(resident.name)

    def _cancel(self, job_id: str) -> None:
        self._parts.perform(self._parts.scheduler.cancel(job_id, self._parts.clock()))

    def _hand_out(self, live: Live, event: Event, now: float) -> None:
        """Anything but a delta."""
        scheduler, perform = self._parts.scheduler, self._parts.perform
        match event:
            case Failed(code="out_of_memory") if not live.answered and live.abort is None:
                again = (event.code, event.message)
                perform(scheduler.on_terminal(event.id, now, finished=False, again=again))
            case Failed(least_context=least, wanted_context=wanted) if least and live.abort is None:
                live.least_context = least
                perform(scheduler.on_too_long(event.id, now, least=least, wanted=wanted))
            case Failed(resume=bytes() as resume) if live.abort is None:
                live.resume, live.grows = resume, False
                perform(scheduler.on_preempted(event.id, now))
            case Finished() | Failed():
                self._finish(live, event)
                perform(scheduler.on_terminal(event.id, now, finished=isinstance(event, Finished)))
            case Started():
                if isinstance(live.job, Generate):
                    self._parts.residents[live.model].count_prompt(event.prompt_tokens, _text_bytes(live.job))
                if not live.meter.started:  # a second run starts silently
                    live.cached_tokens = event.cached_tokens
                    live.meter.other(event, now)
                    live.stream.push(event)
            case Part():
                live.answered = True
                live.first_at = live.first_at or now
                live.meter.other(event, now)
                live.stream.push(event)
            case _:
                assert_never(event)

    def _finish(self, live: Live, event: Finished | Failed) -> None:
        """The one place where a job ends."""
        now = self._parts.clock()
        if isinstance(event, Finished) and (cut_short := event.cut_short) is not None:
            self._parts.tell(
                "cut_short", model=live.model, reason=cut_short, tokens=event.completion_tokens, **asked_by(live)
            )
            self._parts.residents[live.model].metrics.cut_short[cut_short].inc()
        if live.abort is not None and isinstance(event, Failed):
            event = Failed(id=event.id, code=live.abort.code, message=live.abort.message)
        if live.stream.queue_ms is None:
            live.stream.queue_ms = (now - live.submitted_at) * 1000
        if self._parts.traces is not None:
            self._parts.traces.job(trace_of(live, event, now), now)
        _settle(live, event, now)
        if live.counted:
            self.foreground.ended(now)
        del self._live[event.id]
        live.meter.other(event, now)
        live.stream.push(event)
        if not self._live:
            self.none_left.set()


def _reserve(live: Live, now: float) -> int:
    """Have its key pay what a job seems to cost. What the key adds to its priority. Raises ApiError 429."""
    account, admission, job = live.asker.account, live.asker.admission, live.job
    if admission is not None and job.sequences:
        most = (job.max_tokens or 0) * job.n if isinstance(job, Generate) else 0
        live.reserved_tokens = admission.reserve(_bytes(job), most, now)
    return 0 if account is None else account.limits.priority


def _settle(live: Live, event: Finished | Failed, now: float) -> None:
    """Have it pay what the job has cost."""
    account = live.asker.account
    if account is None or not live.job.sequences:
        return
    figures: Finished | RequestMeter = event if isinstance(event, Finished) else live.meter
    completion = event.completion_tokens if isinstance(event, Finished) else live.meter.generated_tokens
    spent = Spent(live.model, figures.prompt_tokens, live.cached_tokens, completion)
    if live.asker.background:
        account.count(spent)
    else:
        account.settle(live.reserved_tokens, spent, now)


def _bytes(job: Job) -> int:
    match job:
        case Generate():
            return _text_bytes(job)
        case Embed():
            return text_bytes(job.inputs)
        case Rerank():
            return text_bytes([job.query, *job.documents])
        case _:
            return 0
