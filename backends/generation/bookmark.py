"""Where a preempted job goes on: what it has said, for another engine of its model.

The server carries a bookmark and does not read it. The prompt is made of the job again, and what was computed of both
is found in the prefix cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.engine import JobError
from backends.generation.sampler_order import follows_tokens
from backends.messages import Failed, FimPrompt

if TYPE_CHECKING:
    from backends.generation.decoder import DecoderModel
    from backends.generation.sequence import GenerationRequest, Sequence


class Bookmark(msgspec.Struct, frozen=True, array_like=True):
    """Of a job whose client has been told of all that is in it."""

    generated: list[int]
    cached_tokens: int
    """Of the prompt, those that were found computed when it began."""
    preemptions: int
    model: str
    """`identity` of the model that had said it: tokens mean nothing to another."""


def resumable(request: GenerationRequest) -> bool:
    """Whether another engine goes on as this one would: what a job stands at follows from its tokens.

    Held back log-probabilities and a sampler's random numbers do not, and the files of a fill-in-the-middle prompt
    depend on the context.
    """
    job = request.job
    plain = job.n == 1 and job.logprobs is None and not isinstance(job.prompt, FimPrompt)
    return plain and follows_tokens(job.sampling) and (request.plan is None or request.plan.follows_tokens)


def preempted(request: GenerationRequest, sequence: Sequence, model: DecoderModel) -> Failed:
    """The end of a job in this engine."""
    resume = b""
    if not request.opening:  # its client knows that it has begun
        bookmark = Bookmark(sequence.generated, request.cached_tokens, request.preemptions + 1, model.identity)
        resume = msgspec.msgpack.encode(bookmark)
    return Failed(id=request.job.id, code="cancelled", message="the request was preempted", resume=resume)


def read(resume: bytes, model: DecoderModel, *, limit: int) -> Bookmark:
    """The bookmark of a job that may have `limit` tokens. Raises JobError."""
    try:
        bookmark = msgspec.msgpack.decode(resume, type=Bookmark)
    except msgspec.MsgspecError as error:
        raise JobError("internal_error", "the request was preempted, and cannot be resumed") from error
    if bookmark.model != model.identity:
        message = "the request was preempted, and the files of its model were replaced meanwhile: send it again"
        raise JobError("internal_error", message)
    if len(bookmark.generated) >= limit:
        told = f"the model came back with room for {limit} tokens of an answer that has {len(bookmark.generated)}"
        raise JobError("out_of_memory", told)
    return bookmark
