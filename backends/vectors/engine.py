"""The engine that gives vectors and scores instead of text: the inputs of all its jobs share each forward pass.

Owns the jobs and the order of their inputs, and nothing of any library: tokens and numbers come from an `InputEncoder`.
An input goes whole through one pass and leaves nothing behind, so a cancelled job is gone between two steps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, assert_never

import numpy as np

from backends.engine import JobError
from backends.kinds import EMBED, RERANK
from backends.messages import (
    ChatPrompt,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Finished,
    Rerank,
    Step,
    Tokenize,
    Tokenized,
)
from backends.stateless import StatelessEngine
from backends.vectors.packing import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.messages import EncoderFacts, Event, Job, Ready, VectorJob


class NoRoomError(Exception):
    """The device has no memory left for a single input; the text tells the numbers."""


class Input(NamedTuple):
    """One text as tokens, or two of them in a row."""

    ids: NDArray[np.int32]
    second: int = 0
    """Where the second text begins, for models that tell the two apart; 0: there is one text only."""


class InputEncoder(Protocol):
    """What an inference library does for this engine. Everything but `encode` is called from another thread."""

    max_tokens: int
    """Tokens of one pass, where a single input is not longer."""
    max_inputs: int
    padded: bool
    """A pass is a rectangle: every input costs as much as its longest."""
    reranks: bool
    """It scores pairs of texts, and gives no vectors."""
    width: int
    """Numbers of a vector."""

    def ready(self) -> Ready[EncoderFacts]:
        """The effective run-time figures."""
        ...

    def text(self, text: str, *, add_special: bool = True) -> list[int]:
        """The tokens of a text; a special token's literal in it stays text."""
        ...

    def pair(self, query: str, document: str) -> Input:
        """What a reranker reads."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids of this vocabulary."""
        ...

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """The bytes of each of them."""
        ...

    def encode(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """`(len(inputs), width) float32`: vectors, or with `reranks` `(len(inputs), 1)` scores of 0..1.

        Raises NoRoomError.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """A job with its inputs as tokens."""

    job: Embed | Rerank
    inputs: list[Input]

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(eq=False, slots=True)
class _Request:
    """A running job."""

    job: Embed | Rerank
    inputs: list[Input]
    waiting: deque[int] = field(default_factory=deque)
    """Places of the inputs still to compute, the longest first: passes of like lengths waste least."""
    lengths: deque[int] = field(default_factory=deque)
    """Of those, in tokens."""

    def __post_init__(self) -> None:
        order = sorted(range(len(self.inputs)), key=lambda place: -self.inputs[place].ids.size)
        self.waiting.extend(order)
        self.lengths.extend(self.inputs[place].ids.size for place in order)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def n_tokens(self) -> int:
        """Of all inputs."""
        return sum(one.ids.size for one in self.inputs)


class EmbeddingEngine(StatelessEngine[_Request, "EncoderFacts"]):
    """See `backends.engine.Engine`."""

    def __init__(self, encoder: InputEncoder) -> None:
        super().__init__(encoder.ready())
        self._encoder = encoder

    @property
    def takes(self) -> Sequence[type[Job]]:
        """A model either embeds or reranks."""
        return (Rerank if self._encoder.reranks else Embed, Tokenize, Detokenize)

    def close(self) -> None:
        """Free everything."""
        super().close()
        self._encoder.close()

    def prepare(self, job: VectorJob) -> PreparedInputs | list[Event]:
        """Tokenize and check; called from the preparer's thread."""
        match job:
            case Embed():
                return PreparedInputs(job, self._texts(job))
            case Rerank():
                return PreparedInputs(job, self._pairs(job))
            case Tokenize():
                return self._tokenize(job)
            case Detokenize():
                self._check_ids(job.tokens, "tokens", param="tokens")
                return [Detokenized(id=job.id, text=self._encoder.decode(job.tokens)), Finished(id=job.id)]
            case _:
                assert_never(job)

    def _tokenize(self, job: Tokenize) -> list[Event]:
        if isinstance(job.prompt, ChatPrompt):
            kind = RERANK if self._encoder.reranks else EMBED
            message = f"this model {kind.does} and has no chat template. hint: {kind.surface}"
            raise JobError("invalid_value", message, param="model")
        tokens = self._encoder.text(job.prompt.text, add_special=job.add_special)
        pieces = self._encoder.pieces(tokens) if job.pieces else None
        return [Tokenized(id=job.id, tokens=tokens, pieces=pieces), Finished(id=job.id, prompt_tokens=len(tokens))]

    def _texts(self, job: Embed) -> list[Input]:
        if job.dimensions is not None and job.dimensions > self._encoder.width:
            message = f"this model's vectors have {self._encoder.width} dimensions, not {job.dimensions}"
            raise JobError("invalid_value", message, param="dimensions")
        found: list[Input] = []
        for place, text in enumerate(job.inputs, job.first):
            if isinstance(text, str):
                tokens = self._encoder.text(text)
            else:
                tokens = self._check_ids(text, f"input[{place}]", param="inputs")
            found.append(self._checked(tokens, f"input[{place}]", param="inputs"))
        return found

    def _pairs(self, job: Rerank) -> list[Input]:
        pairs = [self._encoder.pair(job.query, document) for document in job.documents]
        for place, one in enumerate(pairs, job.first):
            self._checked(one.ids, f"documents[{place}] with the query", param="documents")
        return pairs

    def _checked(self, tokens: Sequence[int] | NDArray[np.int32], what: str, *, param: str) -> Input:
        """The input, where the model can take it whole. Raises JobError."""
        if len(tokens) == 0:
            raise JobError("invalid_value", f"{what} has no tokens", param=param)
        limit = self._ready.facts.context
        if len(tokens) > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, {what} resulted in {len(tokens)} "
                "tokens. It is never cut: please send shorter pieces."
            )
            raise JobError("context_length_exceeded", message, param=param)
        return Input(np.asarray(tokens, dtype=np.int32))

    def _check_ids(self, tokens: list[int], what: str, *, param: str) -> list[int]:
        limit = self._ready.facts.n_vocab
        bad = next((token for token in tokens if not 0 <= token < limit), None)
        if bad is not None:
            message = (
                f"{what} holds token id {bad}, which is outside this model's vocabulary of {limit} tokens: the ids are "
                "of another model's tokenizer. hint: send text; in LangChain set check_embedding_ctx_length=False"
            )
            raise JobError("invalid_value", message, param=param)
        return tokens

    def add(self, prepared: PreparedInputs) -> list[Event]:
        """Take a job in; its inputs are in the next passes."""
        request = _Request(prepared.job, prepared.inputs)
        return self._admitted(request, prompt_tokens=request.n_tokens)

    def step(self) -> Step:
        """One forward pass over inputs of as many jobs as there is room for."""
        begin = time.perf_counter_ns()
        encoder = self._encoder
        requests = list(self._running)
        counts = pack(
            [request.lengths for request in requests],
            max_tokens=encoder.max_tokens,
            max_inputs=encoder.max_inputs,
            padded=encoder.padded,
        )
        taken = [(r, [_next(r) for _ in range(count)]) for r, count in zip(requests, counts, strict=True) if count]
        inputs = [request.inputs[place] for request, places in taken for place in places]
        try:
            events = self._answers(taken, encoder.encode(inputs))
        except NoRoomError:  # of one input; the jobs beside it are computed without it
            events = [event for one in taken for event in self._alone(*one)]
        self._running.rotate(-1)
        return Step(
            events=events,
            n_prefill=sum(one.ids.size for one in inputs),
            n_inputs=len(inputs),
            duration_us=(time.perf_counter_ns() - begin) // 1000,
        )

    def _alone(self, request: _Request, places: list[int]) -> list[Event]:
        """A pass over inputs of one job, which fails for want of memory and leaves the others running."""
        try:
            rows = self._encoder.encode([request.inputs[place] for place in places])
        except NoRoomError as error:
            return self._failed(request, "out_of_memory", str(error))
        return self._answer(request, places, rows)

    def _answers(self, taken: list[tuple[_Request, list[int]]], rows: NDArray[np.float32]) -> list[Event]:
        events: list[Event] = []
        start = 0
        for request, places in taken:
            events += self._answer(request, places, rows[start : start + len(places)])
            start += len(places)
        return events

    def _answer(self, request: _Request, places: list[int], rows: NDArray[np.float32]) -> list[Event]:
        job = request.job
        if not np.isfinite(rows).all():
            message = "the model computed numbers that are not finite; its file may be broken"
            return self._failed(request, "internal_error", message)
        if isinstance(job, Embed):  # the score of a `Rerank` is one number, and stays as it is
            rows = finish(rows, dimensions=job.dimensions, normalize=job.normalize)
        events: list[Event] = [Embedded(id=job.id, inputs=places, dimensions=rows.shape[1], vectors=packed(rows))]
        if not request.waiting:
            self._running.remove(request)
            events.append(Finished(id=job.id, prompt_tokens=request.n_tokens))
        return events


def _next(request: _Request) -> int:
    request.lengths.popleft()
    return request.waiting.popleft()


def finish(rows: NDArray[np.float32], *, dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """`(n, width)` -> `(n, dimensions)`: the first numbers of each vector, scaled to length 1; zeros stay zeros."""
    cut = rows[:, :dimensions]
    if not normalize:
        return cut
    lengths = np.sqrt(np.square(cut).sum(axis=1, keepdims=True))
    lengths[lengths == 0] = 1
    normal: NDArray[np.float32] = cut / lengths
    return normal


def packed(rows: NDArray[np.float32]) -> bytes:
    """Row after row, little endian float32."""
    return np.ascontiguousarray(rows, dtype="<f4").tobytes()
