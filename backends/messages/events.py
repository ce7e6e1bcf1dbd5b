"""What comes back of a job: its start, the parts of its answer, exactly one end, and the error codes.

Starts and ends are the same for all kinds of jobs. What an answer consists of is its kind's own: a subclass of `Part`,
named in the kind's line of `backends.kinds`.
"""

from __future__ import annotations

from typing import Final, Literal

from backends.messages.plain import Plain

Piece = bytes
"""The exact bytes of a token; an alias, because a field of that name hides the type from msgspec."""
FinishReason = Literal["stop", "length", "tool_calls"]
"""Why a choice ended: `stop` is the model's own end or a stop string, `length` is `max_tokens` or a full context,
`tool_calls` is the model's own end after it has called a tool."""
ErrorCode = Literal[
    "invalid_value",
    "unsupported_parameter",
    "context_length_exceeded",
    "template_error",
    "model_not_found",
    "cannot_fit",
    "memory_busy",
    "queue_full",
    "queue_timeout",
    "request_timeout",
    "load_failed",
    "quarantined",
    "worker_crashed",
    "worker_hung",
    "out_of_memory",
    "unsupported_media",
    "draining",
    "cancelled",
    "internal_error",
]
"""The closed set of reasons a job can fail for. `server.errors` gives each its HTTP status, in one table."""


class TokenLogprob(Plain, frozen=True):
    """One token of the output, or of an echoed prompt, with its log-probability.

    `bytes` is what it wrote, exactly, and of an alternative what it is spelled with; `token` is its text, with U+FFFD
    for half characters, or a control token's literal.
    """

    token: str
    logprob: float | None
    """None for the first token of an echoed prompt, which nothing comes before."""
    bytes: Piece
    top: list[TokenLogprob] = []


class Looked(Plain, frozen=True):
    """What the images and sounds of a prompt were and cost."""

    n_media: int
    n_rows: int
    """Tokens that they are counted as."""
    n_encoded: int
    """Those that were not known from before."""
    encoded_s: float
    """Seconds in which these were encoded."""


class Started(Plain, tag="started", frozen=True):
    """The prompt is valid and has a place in the engine."""

    id: str
    prompt_tokens: int
    cached_tokens: int = 0
    thinking: bool = False
    """The rendered prompt ends inside an open reasoning block, so the output begins with reasoning."""
    omitted: int = 0
    """Files of a fill-in-the-middle prompt that were left out for want of room."""
    looked: Looked | None = None
    """None for a prompt of text alone."""


class Part(Plain, frozen=True):
    """A part of a job's answer; each kind of job has its own."""

    id: str


class Delta(Part, tag="delta", frozen=True):
    """More text of one choice. Text never splits a character and never holds a stop string."""

    index: int
    text: str
    n_tokens: int
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    """Set on the choice's last delta."""
    stop: str | None = None
    """The stop string that ended the choice, when one did."""


class Tokenized(Part, tag="tokenized", frozen=True):
    """Answer to `Tokenize`; `pieces[i]` are the bytes of `tokens[i]` when asked for."""

    tokens: list[int]
    pieces: list[bytes] | None = None


class Detokenized(Part, tag="detokenized", frozen=True):
    """Answer to `Detokenize`."""

    text: str


class Embedded(Part, tag="embedded", frozen=True):
    """The vectors of some inputs of an `Embed` (or the scores of some documents of a `Rerank`, with `dimensions` 1)."""

    inputs: list[int]
    """Which ones, in the order of the rows; every input comes once."""
    dimensions: int
    vectors: bytes
    """`(len(inputs), dimensions)` float32, little endian, row after row."""


class Finished(Plain, tag="finished", frozen=True):
    """Terminal: the job did what it was asked."""

    id: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    reasoning_tokens: int = 0
    """Those of the completion that belong to reasoning."""
    foretold_tokens: int = 0
    """Tokens of the completion that came as `Generate.prediction` had them."""
    refuted_tokens: int = 0
    """Those of the prediction that did not come, of every choice."""
    cut_short: ErrorCode | None = None
    """Why it ended before the model or `max_tokens` ended it; what it has generated was delivered."""


class Failed(Plain, tag="failed", frozen=True):
    """Terminal: the job ended otherwise.

    `message` is a sentence a user may read: no paths, addresses, prompts or keys.
    """

    id: str
    code: ErrorCode
    message: str
    param: str | None = None
    """The field of the job (`prompt`, `logit_bias` ...) it is about; routes translate it to their own names."""
    retry_after_s: float | None = None
    least_context: int = 0
    """Of a job whose model could be loaded with a longer context: tokens that its prompt needs; 0: none would do."""
    wanted_context: int = 0
    """The same with room for an answer."""
    resume: bytes | None = None
    """Of a job that was preempted for its model to be loaded anew: what `Generate.resume` is to be."""


Event = Started | Part | Finished | Failed
ENDS: Final = (Finished, Failed)
"""Exactly one of them ends each job."""
