"""Who runs: the jobs of one engine, their sequences, and the slots that these have."""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING

from backends.generation.sequence import Sequence
from backends.prompts.text import TextStream

if TYPE_CHECKING:
    from backends.generation.decoder import DecoderContext
    from backends.generation.residency import Residency
    from backends.generation.sequence import GenerationRequest
    from backends.generation.speculation import Speculation
    from backends.generation.step_rows import StepRows


class Roster:
    """See the module's text."""

    def __init__(
        self, context: DecoderContext, residency: Residency, speculation: Speculation, *, n_slots: int
    ) -> None:
        self._context, self._residency, self._speculation = context, residency, speculation
        self.requests: dict[str, GenerationRequest] = {}
        """By job."""
        self.sequences: list[Sequence] = []
        self.ended: list[Sequence] = []
        """Their ends are told; what they have computed is still to be kept, and their slots to be freed."""
        self.free = list(range(n_slots))
        """A heap: the lowest slots are taken first, because llama.cpp batches only neighbouring ones together."""
        self.n_waiting = 0
        self.with_background = False
        """Some job has had time; until one does, no step looks for any."""
        self.steady: StepRows | None = None
        """The last step's rows where every sequence decoded and the next step has the same rows; None where not."""
        self._n_started = 0

    def of(self, request: GenerationRequest) -> list[Sequence]:
        """The choices of a job that run."""
        return [sequence for sequence in self.sequences if sequence.request is request]

    def runs(self, sequence: Sequence) -> bool:
        """It has not ended, nor has its job."""
        return sequence.request.job.id in self.requests and sequence not in self.ended

    def start(self, request: GenerationRequest) -> Sequence:
        """Give the next unstarted choice of a request a slot."""
        job = request.job
        index = request.unstarted.pop(0)
        prompt = request.layout.words(request.prompt).tolist() if job.sampling.repetition_penalty != 1.0 else ()
        sampler = self._context.sampler(job.sampling, prompt=prompt, choice=index)
        stops = () if job.min_tokens else tuple(job.stop)
        text = TextStream(stops=stops, keep_logprobs=job.logprobs is not None, sorts=request.new_splitter())
        self._n_started += 1
        slot, now_us = heapq.heappop(self.free), time.perf_counter_ns() / 1000
        sequence = Sequence(request, index, slot, sampler, text, request.prompt, self._n_started, now_us)
        self._context.adapt(slot, job.adapter)
        sequence.drafts = self._speculation.drafts_of(sequence, self._residency.cached_texts)
        request.predicted_tokens += 0 if sequence.drafts is None else len(request.prediction)
        self.sequences.append(sequence)
        self.with_background = self.with_background or sequence.background
        self.n_waiting += 1
        self.steady = None
        return sequence

    def lay_down(self, sequence: Sequence) -> None:
        """Nothing more is computed of it; see `settle`."""
        self.sequences.remove(sequence)
        self.ended.append(sequence)
        self.steady = None

    def settle(self, *, most: int) -> None:
        """Keep what so many ended sequences have computed and free their slots: clients have their ends by now.

        A state takes about 10 us per token to keep, so the end of a long conversation would come late by a step or two,
        and the ends of several at once would hold up who goes on.
        """
        for sequence in self.ended[:most]:
            self._vacate(sequence)
        del self.ended[:most]
        self.start_waiting_choices()

    def start_waiting_choices(self) -> None:
        """Start choices for which there was no slot; only the last token of their prompt is computed again."""
        for request in self.requests.values():
            while self.free and request.unstarted and not request.opening:
                self.start(request)

    def _vacate(self, sequence: Sequence) -> None:
        self._residency.release(sequence)
        heapq.heappush(self.free, sequence.slot)
        sequence.sampler.close()
