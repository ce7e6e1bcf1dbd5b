"""Every message that crosses the border between the server and a worker, as plain data.

Owns the vocabulary (jobs, events, commands, reports) and nothing else: no transport, no HTTP types, no engine types.
The encoding is msgpack of these tagged structs (see `backends.wire`); never pickle.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Piece = bytes
"""The exact bytes of a token; an alias, because a field of that name hides the type from msgspec."""

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
KvLayout = Literal["split", "unified"]
"""`split`: each sequence has a stream of `context` cells; `unified`: all sequences share the cells of one pool."""
PromptEnd = Literal["answer", "nothing", "message"]
"""What a rendered conversation ends with: the beginning of the assistant's `answer`, `nothing` behind the last message,
or that `message` itself, left open for the model to continue."""
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
    "draining",
    "cancelled",
    "internal_error",
]
"""The closed set of reasons a job can fail for. `server.errors` gives each its HTTP status, in one table."""


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the immutable messages."""


class Sampling(_Plain, frozen=True):
    """How the next token is chosen. The defaults are OpenAI's: temperature 1, everything else off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 means off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output, as in vLLM and transformers; 1 means off."""
    presence_penalty: float = 0.0
    """Over the output alone, as OpenAI defines it."""
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}


class ChatPrompt(_Plain, tag="chat", frozen=True):
    """A conversation, rendered by the worker with the model's own template.

    `messages` are dicts with `role` and `content` (string or None) and, where present, `tool_calls`, `tool_call_id`,
    `name`, `reasoning_content`; content parts are already joined to a string.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    template_kwargs: dict[str, bool | str | int] = {}
    end: PromptEnd = "answer"


class TextPrompt(_Plain, tag="text", frozen=True):
    """Raw text; special-token literals in it are special tokens, because a raw prompt has no template but itself."""

    text: str


class TokenPrompt(_Plain, tag="tokens", frozen=True):
    """Token ids of this model's own vocabulary."""

    tokens: list[int]


class InfillFile(_Plain, frozen=True):
    """Another file, or a part of one, that a fill-in-the-middle model may look at."""

    name: str
    text: str


class InfillPrompt(_Plain, tag="infill", frozen=True):
    """Fill in the middle: the model continues `prefix` so that `suffix` fits behind it."""

    prefix: str
    suffix: str
    files: list[InfillFile] = []
    """In front of the prefix; the first of them are left out where the context has no room (`Started.omitted`)."""


Prompt = ChatPrompt | TextPrompt | TokenPrompt | InfillPrompt


class JsonObject(_Plain, tag="json_object", frozen=True):
    """The answer is one JSON object of any shape."""


class JsonSchema(_Plain, tag="json_schema", frozen=True):
    """The answer is JSON that validates against a schema."""

    schema: str
    """JSON text: the order of properties is the order in which the model writes them."""
    param: str = "response_format"
    """Where the client wrote it; a refusal names the path from there."""


class Pattern(_Plain, tag="pattern", frozen=True):
    """The whole answer matches a regular expression (no look-around, no back-references)."""

    regex: str
    param: str = "response_format"


class Function(_Plain, frozen=True):
    """A function that may be called."""

    name: str
    parameters: str = "{}"
    """A JSON schema, as text."""
    param: str = "tools"
    """Where the client wrote the schema."""


class ToolCalls(_Plain, tag="tool_calls", frozen=True):
    """Calls of tools in the model's own format, each with arguments that validate against its function's schema."""

    functions: list[Function]
    """Those that may be called; the ones the model is shown stand in the prompt."""
    required: bool = False
    """True: the answer is at least one call; False: text, which may turn into calls."""
    parallel: bool = True
    """Several calls may follow each other."""
    content: JsonObject | JsonSchema | None = None
    """What the text is restricted to where the model calls nothing."""


Constraint = JsonObject | JsonSchema | Pattern | ToolCalls
"""What the answer must be. A reasoning block before it stays free."""


class Generate(_Plain, tag="generate", frozen=True):
    """Generate `n` continuations of one prompt."""

    id: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """Tokens per choice; None, or more than the room left, means the room left. 0 ends at once (echo alone)."""
    min_tokens: int = 0
    stop: list[str] = []
    n: int = 1
    logprobs: int | None = None
    """None: off; k: the chosen token's log-probability and the k best alternatives, of the model's raw distribution."""
    ignore_eos: bool = False
    echo: bool = False
    """Deliver the prompt's own text as the start of every choice; with `logprobs`, its tokens' as well."""
    constraint: Constraint | None = None
    reasoning_budget: int | None = None
    """Tokens after which an open reasoning block is closed; None leaves it to the model."""
    cache_prompt: bool = True
    """False: the prompt is computed, nothing computed before is used for it, and nothing of it is kept."""
    cache_domain: str = ""
    """Computed prompts are shared among jobs of one domain only; not a key, and nothing a key could be told from."""
    session: str = ""
    """What the client calls this conversation; only breaks ties between computed prompts of equal length."""
    priority: int = 0
    """When memory runs out the job of the lowest priority is set back first."""

    @property
    def sequences(self) -> int:
        """How many token streams the job is; the scheduler counts room in them."""
        return self.n


class Tokenize(_Plain, tag="tokenize", frozen=True):
    """Ask for the token ids of a prompt. Answered by `Tokenized`, then `Finished`."""

    id: str
    prompt: ChatPrompt | TextPrompt
    add_special: bool = True
    pieces: bool = False

    @property
    def sequences(self) -> int:
        """None: it takes no room in the engine."""
        return 0


class Detokenize(_Plain, tag="detokenize", frozen=True):
    """Ask for the text of token ids. Answered by `Detokenized`, then `Finished`."""

    id: str
    tokens: list[int]

    @property
    def sequences(self) -> int:
        """None: it takes no room in the engine."""
        return 0


class Embed(_Plain, tag="embed", frozen=True):
    """Ask for one vector per input. Answered by `Started`, `Embedded` (one or more), then `Finished`."""

    id: str
    inputs: list[str | list[int]]
    """Texts, which get the model's special tokens, or token ids of its own vocabulary, which are taken as they are."""
    dimensions: int | None = None
    """Keep the first so many numbers of each vector (Matryoshka); None keeps all."""
    normalize: bool = True
    """Scale every vector to length 1, after the cut."""
    first: int = 0
    """Which of its request's inputs the first one is: a large request comes as several jobs."""

    @property
    def sequences(self) -> int:
        """One, however many inputs: its inputs share steps with those of other jobs, as tokens allow."""
        return 1


class Rerank(_Plain, tag="rerank", frozen=True):
    """Ask how well each document answers a query. Answered like `Embed`, with one number per document."""

    id: str
    query: str
    documents: list[str]
    first: int = 0
    """Which of its request's documents the first one is."""

    @property
    def sequences(self) -> int:
        """One, however many documents."""
        return 1


Job = Generate | Tokenize | Detokenize | Embed | Rerank


class TokenLogprob(_Plain, frozen=True):
    """One token of the output, or of an echoed prompt, with its log-probability.

    `bytes` is the exact piece, `token` its text with U+FFFD for half characters.
    """

    token: str
    logprob: float | None
    """None for the first token of an echoed prompt, which nothing comes before."""
    bytes: Piece
    top: list[TokenLogprob] = []


class Started(_Plain, tag="started", frozen=True):
    """The prompt is valid and has a place in the engine."""

    id: str
    prompt_tokens: int
    cached_tokens: int = 0
    thinking: bool = False
    """The rendered prompt ends inside an open reasoning block, so the output begins with reasoning."""
    omitted: int = 0
    """Files of a fill-in-the-middle prompt that were left out for want of room."""


class Delta(_Plain, tag="delta", frozen=True):
    """More text of one choice. Text never splits a character and never holds a stop string."""

    id: str
    index: int
    text: str
    n_tokens: int
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    """Set on the choice's last delta."""
    stop: str | None = None
    """The stop string that ended the choice, when one did."""


class Tokenized(_Plain, tag="tokenized", frozen=True):
    """Answer to `Tokenize`; `pieces[i]` are the bytes of `tokens[i]` when asked for."""

    id: str
    tokens: list[int]
    pieces: list[bytes] | None = None


class Detokenized(_Plain, tag="detokenized", frozen=True):
    """Answer to `Detokenize`."""

    id: str
    text: str


class Embedded(_Plain, tag="embedded", frozen=True):
    """The vectors of some inputs of an `Embed` (or the scores of some documents of a `Rerank`, with `dimensions` 1)."""

    id: str
    inputs: list[int]
    """Which ones, in the order of the rows; every input comes once."""
    dimensions: int
    vectors: bytes
    """`(len(inputs), dimensions)` float32, little endian, row after row."""


class Finished(_Plain, tag="finished", frozen=True):
    """Terminal: the job did what it was asked."""

    id: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    reasoning_tokens: int = 0
    """Those of the completion that belong to reasoning."""


class Failed(_Plain, tag="failed", frozen=True):
    """Terminal: the job ended otherwise.

    `message` is a sentence a user may read: no paths, addresses, prompts or keys.
    """

    id: str
    code: ErrorCode
    message: str
    param: str | None = None
    """The field of the job (`prompt`, `logit_bias` ...) it is about; routes translate it to their own names."""
    retry_after_s: float | None = None


Event = Started | Delta | Tokenized | Detokenized | Embedded | Finished | Failed
Terminal = Finished | Failed


class Store(_Plain, frozen=True):
    """Where a worker may keep computed prompts, so that the next request, or the next worker, finds them."""

    folder: str
    """In host memory (a file system that has no disk); it is the server's, and the worker writes nothing else there.

    Its files are named by `backends.prefix.worth`: the server reads the names, and may remove any file at any time.
    """
    max_bytes: int
    """To begin with; `Keep` changes it."""
    disk_folder: str = ""
    """On a disk; empty: none."""
    disk_bytes: int = 0


class LoadModel(_Plain, tag="load", frozen=True):
    """The first frame a worker receives: which model, how."""

    name: str
    backend: str
    path: str
    context: int
    """Tokens one request may use."""
    parallel: int
    """Sequences decoded at once."""
    kv_type: KvType = "f16"
    gpu_layers: int = -1
    """Layers on the GPU; -1 means all. 0 on a machine without one."""
    device: Literal["cuda", "cpu"] = "cpu"
    threads: int = 0
    """0 means as many as the machine has physical cores for us."""
    kv_tokens: int = 0
    """Tokens the KV pool holds for all sequences together; 0 means context x parallel."""
    kv_layout: KvLayout = "split"
    max_gap_ms: float = 0.0
    """The longest a running stream should wait for its next token beside prompts; 0: a small multiple of a step."""
    store: Store | None = None
    """Where computed prompts are kept; None: nowhere."""
    options: dict[str, bool | int | float | str] = {}
    """Backend-specific settings that only the engine's folder knows."""


class Submit(_Plain, tag="submit", frozen=True):
    """Run a job."""

    job: Job


class Cancel(_Plain, tag="cancel", frozen=True):
    """Drop a job; its terminal event is `Failed(code="cancelled")` unless another one was already on its way."""

    id: str


class Ping(_Plain, tag="ping", frozen=True):
    """Are you alive? Answered by the reader thread."""


class Keep(_Plain, tag="keep", frozen=True):
    """Hold at most so many bytes of computed prompts in the store's folder from now on. Answered by `Keeps`."""

    max_bytes: int


class Shutdown(_Plain, tag="shutdown", frozen=True):
    """Close the engine and exit 0. Jobs still running are failed with `draining`."""


Command = LoadModel | Submit | Cancel | Keep | Ping | Shutdown


class Progress(_Plain, tag="progress", frozen=True):
    """A share of the load that is done, 0..1."""

    fraction: float


class Ready(_Plain, tag="ready", frozen=True):
    """The model is loaded: its effective run-time figures."""

    context: int
    parallel: int
    n_ctx_train: int
    n_vocab: int
    gpu_layers: int
    n_layers: int
    measured_bytes: int
    """Bytes this process takes once all its buffers are in use, by the best instrument there is; 0: nobody can tell."""
    parts: dict[str, int] = {}
    """Measured or reported bytes by component: weights, kv, compute, projector, runtime (those the engine knows)."""
    capabilities: list[str] = []
    """Among: chat, completion, infill, tools, thinking, embedding, rerank."""
    tool_format: str | None = None
    """How the model writes tool calls, by its name in `backends.formats`; None when it takes no chat."""
    reasoning_marks: tuple[str, str] | None = None
    """What opens and closes a reasoning block in the model's text; None when it writes none."""
    template_options: list[str] = []
    """Switches for reasoning that the chat template reads, among: enable_thinking, thinking, reasoning_effort,
    thinking_budget."""
    engine: str = ""
    """Name and version of the inference library."""
    load_s: float = 0.0
    """Seconds the engine took for the load itself, without the start of the process and its imports."""


class LoadFailed(_Plain, tag="load_failed", frozen=True):
    """The model could not be loaded; the worker exits after this."""

    code: Literal["load_failed", "out_of_memory"]
    message: str


class Step(_Plain, tag="step", frozen=True):
    """Everything one engine step (or one prepared job) produced, for all its jobs, with the figures of the step.

    Several quick steps may come as one; the figures are sums then.
    """

    events: list[Event] = []
    n_decode: int = 0
    """Sequences that got a decoded token in this step."""
    n_prefill: int = 0
    """Prompt tokens computed in this step."""
    n_embedded: int = 0
    """Inputs of `Embed` and `Rerank` jobs whose vectors this step computed."""
    duration_us: int = 0
    batches: list[int] = []
    """Where several steps come as one: `n_decode` of each, in order."""
    kv_used: int = 0
    """Used cells of the KV pool after the step."""
    kv_total: int = 0
    store_bytes: int = 0
    """What computed prompts take in the store's folder after the step."""


class Pong(_Plain, tag="pong", frozen=True):
    """Alive. `step_age_s` is how long the current engine step has been running (0 when between steps)."""

    step_age_s: float = 0.0


class Keeps(_Plain, tag="keeps", frozen=True):
    """No more than that lies in the store's folder."""

    max_bytes: int


Report = Progress | Ready | LoadFailed | Step | Keeps | Pong
