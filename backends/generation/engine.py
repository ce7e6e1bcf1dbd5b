"""The generating engine: continuous batching over what a library decodes (`decoder`).

Owns the step of one model: who has a share in it, and in what order. Who runs is `roster`'s, what becomes of computed
rows `answers`', what the library does lies behind `decoder`, prompts in `preparing`, tokens and text in `choosing`, the
plan of a step in `batching`, cells and cached prefixes in `residency`.

A sequence goes `waiting -> prefill -> decode -> done`, and back to `waiting` when the pool runs full. Choices of one
job share a prefill: the first computes the prompt, the others fork from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from backends.engine import JobError
from backends.generation.adapters import NO_ADAPTERS, LoadedAdapters
from backends.generation.answers import Answers
from backends.generation.bookmark import preempted, resumable
from backends.generation.choosing import Chooser
from backends.generation.decoder import INTERRUPTED
from backends.generation.embedding_step import compute
from backends.generation.lone_prompt import LonePrompt
from backends.generation.preparing import Preparer
from backends.generation.residency import Residency, Verdict
from backends.generation.roster import Roster
from backends.generation.sequence import GenerationRequest, Phase, PreparedGenerate, Sequence
from backends.generation.speculation import Speculation
from backends.generation.step_rows import StepRows, demands_of, filled, foreground_first, is_mixed, learn
from backends.generation.turns import AdapterTurns, Turn, are_apart
from backends.messages import ChatPrompt, Delta, Detokenize, Failed, Finished, Generate, Ready, Started, Step, Tokenize

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._lone = LonePrompt(context.stop_flag, yields=batcher.ends_steps)
        self._turns = AdapterTurns() if context.one_adapter and adapters.identities else None
        self._residency = Residency(context, store=store, pace=batcher.pace)
        self._roster = Roster(context, self._residency, self._speculation, n_slots=ready.parallel)
        self._n_apart = 0
        """Steps in which no other sequence is let in: there was no room for all, whatever was estimated."""
        self._preparer = Preparer(
            model, tokenizer, context=ready.facts.context, borders=context.forgets, adapters=adapters
        )
        self._chooser = Chooser(model, shown_piece=tokenizer.shown_piece, ends=tokenizer.ends)
        self._answers = Answers(
            context,
            roster=self._roster,
            residency=self._residency,
            speculation=self._speculation,
            chooser=self._chooser,
        )

    def ready(self) -> Ready[GeneratorFacts]:
        """The effective run-time figures."""
        return self._ready

    @property
    def idle(self) -> bool:
        """True when no sequence runs, and what those that ended have computed is kept."""
        return not self._roster.sequences and not self._roster.ended

    def close(self) -> None:
        """Free everything; what running jobs have computed is kept."""
        for job_id in list(self._roster.requests):
            self.cancel(job_id)
        self._roster.settle(most=len(self._roster.ended))
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
        if not self._roster.free:
            self._roster.settle(most=1)
        if not self._roster.free:
            return [Failed(id=job.id, code="internal_error", message="the job was dispatched to a full engine")]
        unstarted = list(range(job.n))
        request = GenerationRequest(
            job, prepared.prompt, prepared.limit, unstarted, n_open=job.n, opening=opening, plan=prepared.plan
        )
        request.echo, request.borders, request.layout = prepared.scored, prepared.borders, prepared.layout
        request.new_splitter, request.prediction = prepared.new_splitter, prepared.prediction
        self._roster.requests[job.id] = request
        sequence = self._roster.start(request)
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
        request = self._roster.requests.get(job_id)
        if request is None or not resumable(request):
            return []
        sequence = next(s for s in self._roster.sequences if s.request is request)
        self._roster.n_waiting -= sequence.phase is Phase.WAITING
        self._roster.lay_down(sequence)
        del self._roster.requests[job_id]
        return [preempted(request, sequence, self._model)]

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job; its slots are free with the next step, or as soon as another job needs them."""
        return self._answers.cancel(job_id)

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        """End a job whose time is over, or for whose next token there is no memory: see `backends.engine.Engine`."""
        return self._answers.cut_short(job_id, reason)

    def interrupt(self, job_id: str) -> None:
        """See `backends.engine.Engine`: a step that computes the job's prompt alone ends."""
        self._lone.interrupt(job_id)

    def attend(self, waits: Callable[[], bool]) -> None:
        """See `backends.engine.Engine`."""
        self._lone.waits = waits

    def make_way(self) -> None:
        """See `backends.engine.Engine`: a long step that computes one prompt ends, unless half of it is done."""
        self._lone.make_way(time.perf_counter_ns() / 1000)

    def keep(self, max_bytes: int) -> None:
        """See `backends.engine.Engine`."""
        self._residency.keep(max_bytes)

    def step(self) -> Step:
        """One forward pass over every sequence that has a share in it, and what came out of it."""
        begin = time.perf_counter_ns()
        events: list[Event] = []
        roster, sequences = self._roster, self._roster.sequences
        if roster.ended:
            none_waits = sequences and not roster.n_waiting and self._residency.room is None
            roster.settle(most=1 if none_waits else len(roster.ended))
            if not sequences:
                return self._report(begin, events)
        if roster.n_waiting and (self._n_apart == 0 or roster.n_waiting == len(sequences)):
            self._admit(events)
        planned = time.perf_counter_ns()  # what was kept and brought back until here is no part of the pass
        room = self._residency.room
        mixed = (roster.with_background and is_mixed(sequences)) or (self._turns and are_apart(sequences))
        drafted = None if mixed else self._speculation.shares(sequences, room=room)
        if drafted is not None:
            rows = filled(drafted, sequences, self._context)
        elif roster.steady is not None and (room is None or room >= len(sequences)):
            rows = self._refill(roster.steady)
        else:
            rows = filled(self._plan(planned / 1000), sequences, self._context)
        if rows.embedded:
            status = compute(rows, sequences, self._context, self._residency.cells)
        else:
            with self._lone.computed(rows, sequences, self._batcher.pace):
                status = self._context.decode(rows.n_tokens, decoding=not rows.n_prefill)
        if status == INTERRUPTED:
            hurried = sequences[rows.shares[0].sequence]
            self._residency.take_back(hurried)
            hurried.hurried = True
            return self._report(begin, events)
        if status == _NO_ROOM and rows.n_drafted:
            self._speculation.give_way(sequences)
            return Step(events=events)
        if status == _NO_ROOM:
            return Step(events=[*events, *self._shed()])
        if status != 0:
            raise RuntimeError(f"decoding failed with status {status}")
        self._n_apart = max(0, self._n_apart - 1)
        duration_us = (time.perf_counter_ns() - planned) / 1000 - self._speculation.spent_us()
        if not rows.n_drafted:
            learn(rows, sequences, self._batcher.pace, duration_us)
        cells = self._residency.cells
        for index, count in rows.shares:
            sequence = sequences[index]
            sequence.n_past += count
            cells.grow(sequence, count)
        for index, _ in (*rows.embedded, *rows.shares):
            sequence = sequences[index]
            if sequence.phase is Phase.PREFILL and sequence.stands:
                self._residency.take_checkpoint(sequence)
        roster.steady = rows if not rows.n_prefill and len(rows.outputs) == len(sequences) else None
        if rows.n_drafted:
            n_accepted = self._speculation.verify(
                rows,
                sequences,
                self._context.logits(len(rows.outputs)),
                choose=lambda sequence, row, logits, best: self._answers.chosen(sequence, row, logits, best, events),
                cut_back=self._residency.cut_back,
            )
            self._speculation.learn(rows, n_accepted, duration_us)
            roster.start_waiting_choices()
        elif rows.outputs:
            self._answers.advance(rows.outputs, events)
            roster.start_waiting_choices()
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

    def _admit(self, events: list[Event]) -> None:
        """Let in waiting sequences, the highest priority and then the oldest first; none overtakes for want of room."""
        waiting = [sequence for sequence in self._roster.sequences if sequence.phase is Phase.WAITING]
        for sequence in sorted(waiting, key=lambda s: (-s.request.job.priority, s.order)):
            verdict = self._residency.admit(sequence)
            while verdict is Verdict.NO_ROOM and (victim := self._residency.background_victim(sequence)) is not None:
                self._preempt(victim)
                verdict = self._residency.admit(sequence)
            if verdict is Verdict.NO_ROOM:
                break
            if verdict is Verdict.PLACED:
                self._roster.n_waiting -= 1
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
            demands, alone = demands_of(self._roster.sequences, now_us), True
            if self._roster.with_background:
                demands, alone = foreground_first(demands, self._roster.sequences)
            turn = Turn(demands) if self._turns is None else self._turns.own(demands, self._roster.sequences, now_us)
            demands, n_beside, n_prompts_beside = turn
            room = self._residency.room if self._residency.pooled else None
            shares = self._batcher.plan(
                demands, room=room, brief=not alone, n_beside=n_beside, n_prompts_beside=n_prompts_beside
            )
            n_decoding = sum(demand.decoding for demand in demands)
            short = len(shares) < n_decoding or not shares
            victim = self._residency.victim(self._roster.sequences) if short else None
            if victim is None:
                return shares
            self._preempt(victim)

    def _preempt(self, sequence: Sequence) -> None:
        self._residency.preempt(sequence)
        self._roster.n_waiting += 1
        self._roster.steady = None

    def _refill(self, rows: StepRows) -> StepRows:
        """Write the same batch one position further on."""
        context, n_tokens = self._context, rows.n_tokens
        context.tokens[:n_tokens] = [sequence.token for sequence, _ in rows.outputs]
        context.positions[:n_tokens] = [sequence.n_past - sequence.n_saved for sequence, _ in rows.outputs]
        return rows

    def _shed(self) -> list[Event]:
        """Preempt the youngest, because there is no room for this step; end it only where it is alone."""
        victim = self._residency.victim(self._roster.sequences)
        if victim is not None:
            self._preempt(victim)
            self._n_apart = _APART_STEPS
            return []
        alone = next(s for s in self._roster.sequences if s.phase is not Phase.WAITING).request.job.id
        told = self.cut_short(alone, "out_of_memory")
        if not isinstance(told[-1], Failed):
            return told
        return [Failed(id=alone, code="out_of_memory", message=self._context.shortage)]
