"""The GGUF engine: continuous batching over llama.cpp.

Owns the sequences of one model and what happens to them in a step. Pointers live in `context`, samplers in `sampling`,
prompts in `preparing`, tokens and text in `choosing`, the plan of a step in `batching`.

A sequence goes `prefill -> decode -> done`. Choices of one job share a prefill: the first computes the prompt, the
others fork from it; choices for which no slot is free yet wait inside their job and start from the saved state.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING

import numpy as np

from backends.batching import Batcher, Demand, Share
from backends.gguf import sampling
from backends.gguf.choosing import Chooser
from backends.gguf.preparing import Preparer
from backends.gguf.sequence import PreparedGenerate, Request, Sequence
from backends.messages import Delta, Failed, Finished, Ready, Started, Step
from backends.text import TextStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.gguf.context import Context, Model
    from backends.gguf.tokenizer import Tokenizer
    from backends.messages import Event, FinishReason, Job


_NO_ROOM = 1


class GgufEngine:
    """See `backends.engine.Engine`."""

    def __init__(self, model: Model, context: Context, tokenizer: Tokenizer, *, ready: Ready, batcher: Batcher) -> None:
        self._model = model
        self._context = context
        self._ready = ready
        self._batcher = batcher
        self._free = list(range(ready.parallel))
        """A heap: the lowest slots are taken first, because llama.cpp batches only neighbouring ones together."""
        self._sequences: list[Sequence] = []
        self._requests: dict[str, Request] = {}
        self._preparer = Preparer(model, tokenizer, context=ready.context)
        self._chooser = Chooser(model)

    def ready(self) -> Ready:
        """The effective run-time figures."""
        return self._ready

    @property
    def idle(self) -> bool:
        """True when no sequence runs."""
        return not self._sequences

    def close(self) -> None:
        """Free everything."""
        for job_id in list(self._requests):
            self.cancel(job_id)
        self._context.close()
        self._model.close()

    def prepare(self, job: Job) -> PreparedGenerate | list[Event]:
        """See `backends.gguf.preparing`; called from the preparer's thread."""
        return self._preparer.prepare(job)

    def add(self, prepared: PreparedGenerate) -> list[Event]:
        """Start a job: its first choice takes a slot, the others follow once the prompt is computed."""
        job = prepared.job
        n_prompt = int(prepared.prompt.size)
        started = Started(id=job.id, prompt_tokens=n_prompt, thinking=prepared.thinking, omitted=prepared.omitted)
        events: list[Event] = [started]
        ends_here = prepared.limit == 0
        if prepared.echo or ends_here:
            reason: FinishReason | None = "length" if ends_here else None
            events += [
                Delta(id=job.id, index=i, text=prepared.echo, n_tokens=0, finish_reason=reason) for i in range(job.n)
            ]
        if ends_here:
            return [*events, Finished(id=job.id, prompt_tokens=n_prompt)]
        if not self._free:
            return [Failed(id=job.id, code="internal_error", message="the job was dispatched to a full engine")]
        request = Request(job, prepared.prompt, prepared.limit, unstarted=list(range(job.n)), n_open=job.n)
        self._requests[job.id] = request
        self._start(request)
        return events

    def _start(self, request: Request) -> Sequence:
        """Give the next unstarted choice of a request a slot."""
        job = request.job
        index = request.unstarted.pop(0)
        prompt = request.prompt.tolist() if job.sampling.repetition_penalty != 1.0 else ()
        sampler = sampling.Sampler(job.sampling, model=self._model, prompt=prompt, choice=index, context=self._context)
        stops = () if job.min_tokens else tuple(job.stop)
        text = TextStream(stops=stops, keep_logprobs=job.logprobs is not None)
        sequence = Sequence(request, index, heapq.heappop(self._free), sampler, text)
        self._sequences.append(sequence)
        return sequence

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job and free its slots at once."""
        request = self._requests.pop(job_id, None)
        if request is None:
            return []
        for sequence in [s for s in self._sequences if s.request is request]:
            self._release(sequence)
        self._resume_waiting_choices()
        return [Failed(id=job_id, code="cancelled", message="the request was cancelled")]

    def step(self) -> Step:
        """One forward pass over every sequence that has a share in it, and what came out of it."""
        begin = time.perf_counter_ns()
        # In order of the slots: with one KV stream per sequence llama.cpp computes a run of ascending slots as one
        # batch, and every other order piece by piece, at half the speed.
        shares = sorted(self._batcher.plan(self._demands()), key=self._slot_of)
        outputs, n_tokens, n_prefill = self._fill(shares)
        status = self._context.decode(n_tokens)
        if status == _NO_ROOM:
            return Step(events=self._shed())
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")
        for index, count in shares:
            self._sequences[index].n_past += count
        events: list[Event] = []
        if outputs:
            self._advance(outputs, events)
            self._resume_waiting_choices()
        return Step(
            events=events,
            n_decode=len(outputs),
            n_prefill=n_prefill,
            duration_us=(time.perf_counter_ns() - begin) // 1000,
            kv_used=sum(sequence.n_past for sequence in self._sequences),
            kv_total=self._ready.context * self._ready.parallel,
        )

    def _slot_of(self, share: Share) -> int:
        return self._sequences[share.sequence].slot

    def _demands(self) -> list[Demand]:
        return [
            Demand(i, s.request.prompt.size - s.n_past, False) if s.token < 0 else Demand(i, 1, True)
            for i, s in enumerate(self._sequences)
        ]

    def _fill(self, shares: list[Share]) -> tuple[list[tuple[Sequence, int]], int, int]:
        """Write the batch; `(sequence, row)` of those that get an output, tokens in all, prompt tokens among them."""
        context = self._context
        outputs: list[tuple[Sequence, int]] = []
        row = n_prefill = 0
        for index, count in shares:
            sequence = self._sequences[index]
            past = sequence.n_past
            end = row + count
            if sequence.token >= 0:
                context.tokens[row] = sequence.token
                context.positions[row] = past
                context.outputs[row] = 1
                outputs.append((sequence, row))
            else:
                prompt = sequence.request.prompt
                context.tokens[row:end] = prompt[past : past + count]
                context.positions[row:end] = np.arange(past, past + count, dtype=np.int32)
                context.outputs[row:end] = 0
                n_prefill += count
                if past + count == prompt.size:
                    context.outputs[end - 1] = 1
                    outputs.append((sequence, end - 1))
            context.sequences[row:end] = sequence.slot
            row = end
        return outputs, row, n_prefill

    def _advance(self, outputs: list[tuple[Sequence, int]], events: list[Event]) -> None:
        """Choose each sequence's next token, turn it into events; `outputs` is in the order of the logits' rows."""
        logits = self._context.logits(len(outputs))
        for output, (sequence, row) in enumerate(outputs):
            if sequence.token < 0 and sequence.request.unstarted:
                self._fork(sequence, row, logits[output], events)
            else:
                self._choose(sequence, row, logits[output], events)

    def _fork(self, source: Sequence, row: int, logits: NDArray[np.float32], events: list[Event]) -> None:
        """Let waiting choices begin from the prompt that `source` just computed, each from the same logits."""
        request = source.request
        if len(request.unstarted) > len(self._free) and request.state is None:
            request.state = self._context.save(source.slot)
        family = [source]
        while request.unstarted and self._free:
            sequence = self._start(request)
            sequence.n_past = source.n_past
            self._context.copy(source.slot, sequence.slot)
            family.append(sequence)
        untouched = logits.copy()
        for sequence in family:
            logits[:] = untouched
            self._choose(sequence, row, logits, events)

    def _choose(self, sequence: Sequence, row: int, logits: NDArray[np.float32], events: list[Event]) -> None:
        if self._chooser.choose(sequence, row, logits, events):
            self._retire(sequence, events)

    def _retire(self, sequence: Sequence, events: list[Event]) -> None:
        """A choice has ended, and with the last one its job."""
        request = sequence.request
        self._release(sequence)
        request.completion_tokens += sequence.n_generated
        request.n_open -= 1
        if request.n_open == 0:
            del self._requests[request.job.id]
            n_prompt = int(request.prompt.size)
            events.append(Finished(request.job.id, prompt_tokens=n_prompt, completion_tokens=request.completion_tokens))

    def _release(self, sequence: Sequence) -> None:
        self._context.clear(sequence.slot)
        heapq.heappush(self._free, sequence.slot)
        self._sequences.remove(sequence)
        sequence.sampler.close()

    def _resume_waiting_choices(self) -> None:
        """Start choices whose prompt state is saved, as slots allow; only the last token is computed again."""
        for request in self._requests.values():
            while self._free and request.unstarted and request.state is not None:
                sequence = self._start(request)
                last = request.prompt.size - 1
                if self._context.restore(sequence.slot, request.state) and self._context.trim(sequence.slot, last):
                    sequence.n_past = last
                else:  # an architecture that cannot cut its state computes the prompt again
                    self._context.clear(sequence.slot)

    def _shed(self) -> list[Event]:
        """Fail the youngest job, because the pool has no room for this step, and leave the others running."""
        youngest = self._sequences[-1].request.job.id
        self.cancel(youngest)
        return [Failed(id=youngest, code="out_of_memory", message="the model's KV pool is full; retry in a moment")]
