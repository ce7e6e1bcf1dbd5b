"""What becomes of the rows that a step has computed: tokens, choices that fork, and the ends of choices and jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.engine import JobError
from backends.generation.sequence import Phase
from backends.messages import Delta, Failed, Finished

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.choosing import Chooser
    from backends.generation.decoder import DecoderContext
    from backends.generation.residency import Residency
    from backends.generation.roster import Roster
    from backends.generation.sequence import GenerationRequest, Sequence
    from backends.generation.speculation import Speculation
    from backends.messages import ErrorCode, Event


class Answers:
    """Of the jobs of one engine."""

    def __init__(
        self,
        context: DecoderContext,
        *,
        roster: Roster,
        residency: Residency,
        speculation: Speculation,
        chooser: Chooser,
    ) -> None:
        self._context, self._roster, self._residency = context, roster, residency
        self._speculation, self._chooser = speculation, chooser

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job; its slots are free with the next step, or as soon as another job needs them."""
        request = self._roster.requests.pop(job_id, None)
        if request is None:
            return []
        self._residency.forget(request)
        for sequence in self._roster.of(request):
            self._roster.n_waiting -= sequence.phase is Phase.WAITING
            self._roster.lay_down(sequence)
        return [Failed(id=job_id, code="cancelled", message="the request was cancelled")]

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        """End a job whose time is over, or for whose next token there is no memory: see `backends.engine.Engine`."""
        request = self._roster.requests.get(job_id)
        sequences = [] if request is None else self._roster.of(request)
        if request is None or not (request.completion_tokens or any(s.n_generated for s in sequences)):
            return self.cancel(job_id)
        events: list[Event] = [Delta(job_id, index, "", 0, None, "length") for index in request.unstarted]
        request.n_open -= len(request.unstarted)
        request.unstarted.clear()
        request.cut_short = reason
        for sequence in sequences:
            self._roster.n_waiting -= sequence.phase is Phase.WAITING
            self._chooser.cut(sequence, events)
            self._retire(sequence, events)
        if not sequences:
            self._end(request, events)
        return events

    def advance(self, outputs: list[tuple[Sequence, int]], events: list[Event]) -> None:
        """Choose each sequence's next token, turn it into events; `outputs` is in the order of the logits' rows."""
        logits = self._context.logits(len(outputs))
        best = logits.argmax(axis=1).tolist()
        for output, (sequence, row) in enumerate(outputs):
            if sequence.request.job.id not in self._roster.requests:  # a sister's constraint has failed it
                continue
            if sequence.request.echo is not None and self._echoed(sequence, row, logits[output], events):
                continue
            if sequence.request.limit == 0:
                self._end_unspoken(sequence, events)
            elif sequence.request.unstarted and not sequence.generated:
                self._fork(sequence, row, logits[output], best[output], events)
            else:
                self._choose(sequence, row, logits[output], best[output], events)

    def chosen(self, sequence: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]) -> bool:
        """Choose a token behind a draft; False where the sequence has ended, perhaps before it."""
        if self._roster.runs(sequence):
            self._choose(sequence, row, logits, best, events)
        return self._roster.runs(sequence)

    def _echoed(self, sequence: Sequence, row: int, logits: NDArray[np.float32], events: list[Event]) -> bool:
        """Score the prompt token behind a row; False where a token has to be chosen there."""
        request, position = sequence.request, int(self._context.positions[row])
        echo, job = request.echo, request.job
        assert echo is not None
        ends = position + 1 >= request.prompt.size
        if not ends:
            echo.score(position, logits)
        if not echo.told and (ends or position + 1 == sequence.n_past):
            text, logprobs = echo.news()
            events += [Delta(job.id, index, text, 0, logprobs) for index in range(job.n)]
        if ends and request.limit == 0:
            self._end_unspoken(sequence, events)
            return True
        return not ends

    def _end_unspoken(self, sequence: Sequence, events: list[Event]) -> None:
        """A prompt that was only to be scored, or to be found by later ones, is computed."""
        request, job = sequence.request, sequence.request.job
        events += [Delta(job.id, index, "", 0, None, "length") for index in range(job.n)]
        self._roster.lay_down(sequence)
        self._end(request, events)

    def _fork(self, source: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]) -> None:
        """Let waiting choices begin from the prompt that `source` just computed, each from the same logits."""
        request = source.request
        family = [source]
        if len(request.unstarted) > len(self._roster.free) and request.entry is None:
            self._residency.remember(source)
        while request.unstarted and self._roster.free:
            sequence = self._roster.start(request)
            if self._residency.fork(source, sequence):
                self._roster.n_waiting -= 1
                family.append(sequence)
        untouched = logits.copy()
        for sequence in family:
            if request.job.id in self._roster.requests:
                logits[:] = untouched
                self._choose(sequence, row, logits, best, events)

    def _choose(
        self, sequence: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]
    ) -> None:
        try:
            ended = self._chooser.choose(sequence, row, logits, best, events)
        except JobError as error:  # the constraint is too costly to follow
            job_id = sequence.request.job.id
            if self.cancel(job_id):
                events.append(Failed(id=job_id, code=error.code, message=error.message, param=error.param))
            return
        if ended:
            self._retire(sequence, events)
        else:
            sequence.phase = Phase.DECODE

    def _retire(self, sequence: Sequence, events: list[Event]) -> None:
        """A choice has ended, and with the last one its job."""
        request = sequence.request
        self._roster.lay_down(sequence)
        request.completion_tokens += sequence.n_generated
        request.reasoning_tokens += 0 if sequence.guide is None else sequence.guide.reasoning_tokens
        request.foretold_tokens += self._speculation.foretold(sequence)
        request.n_open -= 1
        if request.n_open == 0:
            self._end(request, events)

    def _end(self, request: GenerationRequest, events: list[Event]) -> None:
        del self._roster.requests[request.job.id]
        self._residency.forget(request)
        events.append(
            Finished(
                request.job.id,
                prompt_tokens=int(request.prompt.size),
                completion_tokens=request.completion_tokens,
                cached_tokens=request.cached_tokens,
                preemptions=request.preemptions,
                reasoning_tokens=request.reasoning_tokens,
                foretold_tokens=request.foretold_tokens,
                refuted_tokens=max(0, request.predicted_tokens - request.foretold_tokens),
                cut_short=request.cut_short,
            )
        )
