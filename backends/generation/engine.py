"""The generating engine: continuous batching over what a library decodes (`decoder`).

Owns the sequences of one model and what happens to them in a step. What the library does lies behind `decoder`,
prompts in `preparing`, tokens and text in `choosing`, the plan of a step in `batching`, cells and cached prefixes in
`residency`.

A sequence goes `waiting -> prefill -> decode -> done`, and back to `waiting` when the pool runs full. Choices of one
job share a prefill: the first computes the prompt, the others fork from it.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from backends.engine import JobError
from backends.generation.adapters import NO_ADAPTERS, LoadedAdapters
from backends.generation.bookmark import preempted, resumable
from backends.generation.choosing import Chooser
from backends.generation.embedding_step import compute
from backends.generation.preparing import Preparer
from backends.generation.residency import Residency, Verdict
from backends.generation.sequence import GenerationRequest, Phase, PreparedGenerate, Sequence
from backends.generation.speculation import Speculation
from backends.generation.step_rows import StepRows, demands_of, filled, foreground_first, is_mixed, learn
from backends.generation.turns import AdapterTurns, are_apart
from backends.messages import ChatPrompt, Delta, Detokenize, Failed, Finished, Generate, Ready, Started, Step, Tokenize
from backends.prompts.text import TextStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.generation.batching import Batcher, Share
    from backends.generation.bookmark import Bookmark
    from backends.generation.decoder import DecoderContext, DecoderModel
    from backends.generation.draft_model import TokenDrafter
    from backends.generation.tokenizer import Tokenizer
    from backends.messages import ErrorCode, Event, FinishReason, GeneratorFacts, SpeculationMode, TextJob
    from backends.prefix.store import PrefixStore


_NO_ROOM = 1
_APART_STEPS = 64


class GeneratingEngine:
    """See `backends.engine.Engine`."""

    takes = (Generate, Tokenize, Detokenize)

    def __init__(
        self,
        model: DecoderModel,
        context: DecoderContext,
        tokenizer: Tokenizer,
        *,
        ready: Ready[GeneratorFacts],
        batcher: Batcher,
        store: PrefixStore | None = None,
        speculation: SpeculationMode = "off",
        draft_model: TokenDrafter | None = None,
        adapters: LoadedAdapters = NO_ADAPTERS,
    ) -> None:
        self._model = model
        self._context = context
        self._ready = ready
        self._batcher = batcher
        mode = speculation if context.cuts_back else "off"
        self._speculation = Speculation(batcher.pace, mode=mode, model=draft_model)
        self._turns = AdapterTurns() if context.one_adapter and adapters.identities else None
        self._residency = Residency(context, store=store, pace=batcher.pace)
        self._free = list(range(ready.parallel))
        """A heap: the lowest slots are taken first, because llama.cpp batches only neighbouring ones together."""
        self._sequences: list[Sequence] = []
        self._ended: list[Sequence] = []
        """Their ends are told; what they have computed is still to be kept, and their slots to be freed."""
        self._n_waiting = 0
        self._n_apart = 0
        """Steps in which no other sequence is let in: there was no room for all, whatever was estimated."""
        self._n_started = 0
        self._with_background = False
        """Some job has had time; until one does, no step looks for any."""
        self._requests: dict[str, GenerationRequest] = {}
        self._steady: StepRows | None = None
        """The last step's rows where every sequence decoded and the next step has the same rows; None where not."""
        self._preparer = Preparer(
            model, tokenizer, context=ready.facts.context, borders=context.forgets, adapters=adapters
        )
        self._chooser = Chooser(model, shown_piece=tokenizer.shown_piece, ends=tokenizer.ends)

    def ready(self) -> Ready[GeneratorFacts]:
        """The effective run-time figures."""
        return self._ready

    @property
    def idle(self) -> bool:
        """True when no sequence runs, and what those that ended have computed is kept."""
        return not self._sequences and not self._ended

    def close(self) -> None:
        """Free everything; what running jobs have computed is kept."""
        for job_id in list(self._requests):
            self.cancel(job_id)
        self._settle(most=len(self._ended))
        self._speculation.close()
        self._context.close()
        self._model.close()

    def prepare(self, job: TextJob) -> PreparedGenerate | list[Event]:
        """See `backends.generation.preparing`; called from the preparer's thread."""
        return self._preparer.prepare(job)

    def add(self, prepared: PreparedGenerate) -> list[Event]:
        """Take a job in: its first choice gets a slot, and its cells with the next step that has room for them."""
        job = prepared.job
        n_prompt = int(prepared.prompt.size)
        opening: list[Event] = [prepared.started]
        computes = prepared.scored is not None or (isinstance(job.prompt, ChatPrompt) and job.cache_prompt)
        ends_here = prepared.limit == 0 and not computes
        if prepared.echo or ends_here:
            reason: FinishReason | None = "length" if ends_here else None
            opening += [
                Delta(id=job.id, index=i, text=prepared.echo, n_tokens=0, finish_reason=reason) for i in range(job.n)
            ]
        if ends_here:
            return [*opening, Finished(id=job.id, prompt_tokens=n_prompt)]
        if not self._free:
            self._settle(most=1)
        if not self._free:
            return [Failed(id=job.id, code="internal_error", message="the job was dispatched to a full engine")]
        unstarted = list(range(job.n))
        request = GenerationRequest(
            job, prepared.prompt, prepared.limit, unstarted, n_open=job.n, opening=opening, plan=prepared.plan
        )
        request.echo, request.borders, request.layout = prepared.scored, prepared.borders, prepared.layout
        request.new_splitter, request.prediction = prepared.new_splitter, prepared.prediction
        self._requests[job.id] = request
        sequence = self._start(request)
        if prepared.bookmark is not None:
            try:
                self._resume(sequence, prepared.bookmark)
            except JobError:
                self.cancel(job.id)
                raise
        return []

    def _resume(self, sequence: Sequence, bookmark: Bookmark) -> None:
        """Let a new sequence go on where another engine has preempted it; its client has been told all of that."""
        request = sequence.request
        request.opening, request.cached_tokens = [], bookmark.cached_tokens
        request.preemptions = bookmark.preemptions
        for token in bookmark.generated:
            self._chooser.follow(sequence, token)
        sequence.target = sequence.history

    def preempt(self, job_id: str) -> list[Event]:
        """See `backends.engine.Engine`: what the job has computed is kept in the prefix cache."""
        request = self._requests.get(job_id)
        if request is None or not resumable(request):
            return []
        sequence = next(s for s in self._sequences if s.request is request)
        self._n_waiting -= sequence.phase is Phase.WAITING
        self._lay_down(sequence)
        del self._requests[job_id]
        return [preempted(request, sequence, self._model)]

    def _start(self, request: GenerationRequest) -> Sequence:
        """Give the next unstarted choice of a request a slot."""
        job = request.job
        index = request.unstarted.pop(0)
        prompt = request.layout.words(request.prompt).tolist() if job.sampling.repetition_penalty != 1.0 else ()
        sampler = self._context.sampler(job.sampling, prompt=prompt, choice=index)
        stops = () if job.min_tokens else tuple(job.stop)
        text = TextStream(stops=stops, keep_logprobs=job.logprobs is not None, sorts=request.new_splitter())
        self._n_started += 1
        slot, now_us = heapq.heappop(self._free), time.perf_counter_ns() / 1000
        sequence = Sequence(request, index, slot, sampler, text, request.prompt, self._n_started, now_us)
        self._context.adapt(slot, job.adapter)
        sequence.drafts = self._speculation.drafts_of(sequence, self._residency.cached_texts)
        request.predicted_tokens += 0 if sequence.drafts is None else len(request.prediction)
        self._sequences.append(sequence)
        self._with_background = self._with_background or sequence.background
        self._n_waiting += 1
        self._steady = None
        return sequence

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job; its slots are free with the next step, or as soon as another job needs them."""
        request = self._requests.pop(job_id, None)
        if request is None:
            return []
        self._residency.forget(request)
        for sequence in [s for s in self._sequences if s.request is request]:
            self._n_waiting -= sequence.phase is Phase.WAITING
            self._lay_down(sequence)
        return [Failed(id=job_id, code="cancelled", message="the request was cancelled")]

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        """End a job whose time is over, or for whose next token there is no memory: see `backends.engine.Engine`."""
        request = self._requests.get(job_id)
        sequences = [s for s in self._sequences if request is not None and s.request is request]
        if request is None or not (request.completion_tokens or any(s.n_generated for s in sequences)):
            return self.cancel(job_id)
        events: list[Event] = [Delta(job_id, index, "", 0, None, "length") for index in request.unstarted]
        request.n_open -= len(request.unstarted)
        request.unstarted.clear()
        request.cut_short = reason
        for sequence in sequences:
            self._n_waiting -= sequence.phase is Phase.WAITING
            self._chooser.cut(sequence, events)
            self._retire(sequence, events)
        if not sequences:
            self._end(request, events)
        return events

    def keep(self, max_bytes: int) -> None:
        """See `backends.engine.Engine`."""
        self._residency.keep(max_bytes)

    def step(self) -> Step:
        """One forward pass over every sequence that has a share in it, and what came out of it."""
        begin = time.perf_counter_ns()
        events: list[Event] = []
        if self._ended:
            none_waits = self._sequences and not self._n_waiting and self._residency.room is None
            self._settle(most=1 if none_waits else len(self._ended))
            if not self._sequences:
                return self._report(begin, events)
        if self._n_waiting and (self._n_apart == 0 or self._n_waiting == len(self._sequences)):
            self._admit(events)
        planned = time.perf_counter_ns()  # what was kept and brought back until here is no part of the pass
        room = self._residency.room
        mixed = (self._with_background and is_mixed(self._sequences)) or (self._turns and are_apart(self._sequences))
        drafted = None if mixed else self._speculation.shares(self._sequences, room=room)
        if drafted is not None:
            rows = filled(drafted, self._sequences, self._context)
        elif self._steady is not None and (room is None or room >= len(self._sequences)):
            rows = self._refill(self._steady)
        else:
            rows = filled(self._plan(planned / 1000), self._sequences, self._context)
        if rows.embedded:
            status = compute(rows, self._sequences, self._context, self._residency.cells)
        else:
            status = self._context.decode(rows.n_tokens, decoding=not rows.n_prefill)
        if status == _NO_ROOM and rows.n_drafted:
            self._speculation.give_way(self._sequences)
            return Step(events=events)
        if status == _NO_ROOM:
            return Step(events=[*events, *self._shed()])
        if status != 0:
            raise RuntimeError(f"decoding failed with status {status}")
        self._n_apart = max(0, self._n_apart - 1)
        duration_us = (time.perf_counter_ns() - planned) / 1000 - self._speculation.spent_us()
        if not rows.n_drafted:
            learn(rows, self._sequences, self._batcher.pace, duration_us)
        cells = self._residency.cells
        for index, count in rows.shares:
            sequence = self._sequences[index]
            sequence.n_past += count
            cells.grow(sequence, count)
        for index, _ in (*rows.embedded, *rows.shares):
            sequence = self._sequences[index]
            if sequence.phase is Phase.PREFILL and sequence.stands:
                self._residency.take_checkpoint(sequence)
        self._steady = rows if not rows.n_prefill and len(rows.outputs) == len(self._sequences) else None
        if rows.n_drafted:
            n_accepted = self._speculation.verify(
                rows,
                self._sequences,
                self._context.logits(len(rows.outputs)),
                choose=lambda sequence, row, logits, best: self._chosen(sequence, row, logits, best, events),
                cut_back=self._residency.cut_back,
            )
            self._speculation.learn(rows, n_accepted, duration_us)
            self._start_waiting_choices()
        elif rows.outputs:
            self._advance(rows.outputs, events)
            self._start_waiting_choices()
        n_decode = len(rows.outputs) - rows.n_scored - rows.n_drafted
        return self._report(begin, events, n_decode=n_decode, n_prefill=rows.n_prefill)

    def _report(self, begin_ns: int, events: list[Event], *, n_decode: int = 0, n_prefill: int = 0) -> Step:
        cells, store = self._residency.cells, self._residency.store
        return Step(
            events=events,
            n_decode=n_decode,
            n_prefill=n_prefill,
            duration_us=(time.perf_counter_ns() - begin_ns) // 1000,
            kv_used=cells.used,
            kv_total=cells.total,
            store_bytes=0 if store is None else store.n_bytes,
            drafted=self._speculation.told() if self._speculation.news else {},
        )

    def _settle(self, *, most: int) -> None:
        """Keep what so many ended sequences have computed and free their slots: clients have their ends by now.

        A state takes about 10 us per token to keep, so the end of a long conversation would come late by a step or two,
        and the ends of several at once would hold up who goes on.
        """
        for sequence in self._ended[:most]:
            self._free_slot(sequence)
        del self._ended[:most]
        self._start_waiting_choices()

    def _admit(self, events: list[Event]) -> None:
        """Let in waiting sequences, the highest priority and then the oldest first; none overtakes for want of room."""
        waiting = [sequence for sequence in self._sequences if sequence.phase is Phase.WAITING]
        for sequence in sorted(waiting, key=lambda s: (-s.request.job.priority, s.order)):
            verdict = self._residency.admit(sequence)
            while verdict is Verdict.NO_ROOM and (victim := self._residency.background_victim(sequence)) is not None:
                self._preempt(victim)
                verdict = self._residency.admit(sequence)
            if verdict is Verdict.NO_ROOM:
                break
            if verdict is Verdict.PLACED:
                self._n_waiting -= 1
                self._open(sequence, events)

    @staticmethod
    def _open(sequence: Sequence, events: list[Event]) -> None:
        """Tell the client that its job has begun, once."""
        request = sequence.request
        if request.opening:
            request.cached_tokens = sequence.n_past
            started, *echoes = request.opening
            assert isinstance(started, Started)
            events += [msgspec.structs.replace(started, cached_tokens=sequence.n_past), *echoes]
            request.opening = []

    def _plan(self, now_us: float) -> list[Share]:
        """Who contributes how much, in order of the slots; without room even so, one is preempted."""
        while True:
            demands, alone = demands_of(self._sequences, now_us), True
            if self._with_background:
                demands, alone = foreground_first(demands, self._sequences)
            own = (demands, 0) if self._turns is None else self._turns.own(demands, self._sequences, now_us)
            demands, n_beside = own
            room = self._residency.room if self._residency.pooled else None
            shares = self._batcher.plan(demands, room=room, brief=not alone, n_beside=n_beside)
            n_decoding = sum(demand.decoding for demand in demands)
            short = len(shares) < n_decoding or not shares
            victim = self._residency.victim(self._sequences) if short else None
            if victim is None:
                return shares
            self._preempt(victim)

    def _preempt(self, sequence: Sequence) -> None:
        self._residency.preempt(sequence)
        self._n_waiting += 1
        self._steady = None

    def _refill(self, rows: StepRows) -> StepRows:
        """Write the same batch one position further on."""
        context, n_tokens = self._context, rows.n_tokens
        context.tokens[:n_tokens] = [sequence.token for sequence, _ in rows.outputs]
        context.positions[:n_tokens] = [sequence.n_past - sequence.n_saved for sequence, _ in rows.outputs]
        return rows

    def _advance(self, outputs: list[tuple[Sequence, int]], events: list[Event]) -> None:
        """Choose each sequence's next token, turn it into events; `outputs` is in the order of the logits' rows."""
        logits = self._context.logits(len(outputs))
        best = logits.argmax(axis=1).tolist()
        for output, (sequence, row) in enumerate(outputs):
            if sequence.request.job.id not in self._requests:  # a sister's constraint has failed it
                continue
            if sequence.request.echo is not None and self._echoed(sequence, row, logits[output], events):
                continue
            if sequence.request.limit == 0:
                self._end_unspoken(sequence, events)
            elif sequence.request.unstarted and not sequence.generated:
                self._fork(sequence, row, logits[output], best[output], events)
            else:
                self._choose(sequence, row, logits[output], best[output], events)

    def _chosen(
        self, sequence: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]
    ) -> bool:
        """Choose a token behind a draft; False where the sequence has ended, perhaps before it."""
        if sequence.request.job.id in self._requests and sequence not in self._ended:
            self._choose(sequence, row, logits, best, events)
        return sequence.request.job.id in self._requests and sequence not in self._ended

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
        self._lay_down(sequence)
        self._end(request, events)

    def _fork(self, source: Sequence, row: int, logits: NDArray[np.float32], best: int, events: list[Event]) -> None:
        """Let waiting choices begin from the prompt that `source` just computed, each from the same logits."""
        request = source.request
        family = [source]
        if len(request.unstarted) > len(self._free) and request.entry is None:
            self._residency.remember(source)
        while request.unstarted and self._free:
            sequence = self._start(request)
            if self._residency.fork(source, sequence):
                self._n_waiting -= 1
                family.append(sequence)
        untouched = logits.copy()
        for sequence in family:
            if request.job.id in self._requests:
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
        self._lay_down(sequence)
        request.completion_tokens += sequence.n_generated
        request.reasoning_tokens += 0 if sequence.guide is None else sequence.guide.reasoning_tokens
        request.foretold_tokens += self._speculation.foretold(sequence)
        request.n_open -= 1
        if request.n_open == 0:
            self._end(request, events)

    def _end(self, request: GenerationRequest, events: list[Event]) -> None:
        del self._requests[request.job.id]
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

    def _lay_down(self, sequence: Sequence) -> None:
        """Nothing more is computed of it; see `_settle`."""
        self._sequences.remove(sequence)
        self._ended.append(sequence)
        self._steady = None

    def _free_slot(self, sequence: Sequence) -> None:
        self._residency.release(sequence)
        heapq.heappush(self._free, sequence.slot)
        sequence.sampler.close()

    def _start_waiting_choices(self) -> None:
        """Start choices for which there was no slot; only the last token of their prompt is computed again."""
        for request in self._requests.values():
            while self._free and request.unstarted and not request.opening:
                self._start(request)

    def _shed(self) -> list[Event]:
        """Preempt the youngest, because there is no room for this step; end it only where it is alone."""
        victim = self._residency.victim(self._sequences)
        if victim is not None:
            self._preempt(victim)
            self._n_apart = _APART_STEPS
            return []
        alone = next(s for s in self._sequences if s.phase is not Phase.WAITING).request.job.id
        told = self.cut_short(alone, "out_of_memory")
        if not isinstance(told[-1], Failed):
            return told
        return [Failed(id=alone, code="out_of_memory", message=self._context.shortage)]
