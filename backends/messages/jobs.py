"""What a worker is asked to compute: prompts, what the answer must be, how tokens are chosen.

The jobs here are those of text and vectors. Other kinds have theirs beside their engine: a subclass of `Job`, named in
the kind's line of `backends.kinds`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from backends.messages.media import Medium
from backends.messages.plain import Plain
from backends.messages.segments import Segment

PromptEnd = Literal["answer", "nothing", "message"]
"""What a rendered conversation ends with: the beginning of the assistant's `answer`, `nothing` behind the last message,
or that `message` itself, left open for the model to continue."""


class Sampling(Plain, frozen=True):
    """How the next token is chosen. The defaults are OpenAI's: temperature 1, everything else off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 means off."""
    min_p: float = 0.0
    typical_p: float = 1.0
    """Tokens about as surprising as expected, up to this share; 1 means off."""
    top_n_sigma: float = 0.0
    """Logits within so many standard deviations of the best; 0 means off."""
    xtc_probability: float = 0.0
    """How often all tokens of at least `xtc_threshold` but the least likely of them are left out."""
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    """The temperature goes so far to either side, by the entropy of the row."""
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    """Its version, 1 or 2; 0 means off."""
    mirostat_tau: float = 5.0
    """The surprise it aims at, in bits."""
    mirostat_eta: float = 0.1
    """How fast it corrects itself."""
    dry_multiplier: float = 0.0
    """Of the penalty on tokens that would go on with a repetition; 0 means off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """Tokens it looks back at; -1 means all."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts over which no repetition reaches."""
    repetition_penalty: float = 1.0
    """Over prompt and output, as in vLLM and transformers; 1 means off."""
    presence_penalty: float = 0.0
    """Over the output alone, as OpenAI defines it."""
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}


class ChatPrompt(Plain, tag="chat", frozen=True):
    """A conversation, rendered by the worker with the model's own template.

    `messages` are dicts with `role` and `content` (string or None) and, where present, `tool_calls`, `tool_call_id`,
    `name`, `reasoning_content`. Text parts are already joined to a string; where a message holds media its content is a
    list of `{"type": "text", "text": ...}` and `{"type": "medium", "medium": i}`, which is `media[i]`.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    template_kwargs: dict[str, bool | str | int] = {}
    end: PromptEnd = "answer"
    media: list[Medium] = []


class TextPrompt(Plain, tag="text", frozen=True):
    """Raw text; special-token literals in it are special tokens, because a raw prompt has no template but itself."""

    text: str


class TokenPrompt(Plain, tag="tokens", frozen=True):
    """Token ids of this model's own vocabulary."""

    tokens: list[int]


class FimFile(Plain, frozen=True):
    """Another file, or a part of one, that a fill-in-the-middle model may look at."""

    name: str
    text: str


class FimPrompt(Plain, tag="infill", frozen=True):
    """Fill in the middle: the model continues `prefix` so that `suffix` fits behind it."""

    prefix: str
    suffix: str
    files: list[FimFile] = []
    """In front of the prefix; the first of them are left out where the context has no room (`Started.omitted`)."""


class SegmentPrompt(Plain, tag="segments", frozen=True):
    """Text, tokens and media in a row."""

    segments: list[Segment]


Prompt = ChatPrompt | TextPrompt | TokenPrompt | FimPrompt | SegmentPrompt


class JsonObject(Plain, tag="json_object", frozen=True):
    """The answer is one JSON object of any shape."""


class JsonSchema(Plain, tag="json_schema", frozen=True):
    """The answer is JSON that validates against a schema."""

    schema: str
    """JSON text: the order of properties is the order in which the model writes them."""
    param: str = "response_format"
    """Where the client wrote it; a refusal names the path from there."""


class Pattern(Plain, tag="pattern", frozen=True):
    """The whole answer matches a regular expression (no look-around, no back-references)."""

    regex: str
    param: str = "response_format"


class Function(Plain, frozen=True):
    """A function that may be called."""

    name: str
    parameters: str = "{}"
    """A JSON schema, as text."""
    param: str = "tools"
    """Where the client wrote the schema."""


class ToolCalls(Plain, tag="tool_calls", frozen=True):
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


JsonWhitespace = Literal["pretty", "compact"]
"""`pretty`: as writers put it, on one line or indented, as the model likes; `compact`: none."""


class Job(Plain, frozen=True):
    """One unit of inference; each kind of job is a subclass with a tag of its own."""

    id: str

    @property
    def sequences(self) -> int:
        """How much of a worker's room it takes; 0 for what is answered without a step."""
        return 1


BACKGROUND_PRIORITY: Final = -1_000_000
"""Of jobs that are computed only while their engine has no other."""


class Generate(Job, tag="generate", frozen=True):
    """Generate `n` continuations of one prompt."""

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
    json_whitespace: JsonWhitespace | None = None
    """White space in JSON that the constraint makes; None means `pretty`."""
    reasoning_budget: int | None = None
    """Tokens after which an open reasoning block is closed; None leaves it to the model."""
    cache_prompt: bool = True
    """False: the prompt is computed, nothing computed before is used for it, and nothing of it is kept."""
    adapter: str = ""
    """The name of the LoRA adapter that computes it with the model; empty: the model alone."""
    cache_domain: str = ""
    """Cached prefixes are shared among jobs of one domain only; not a key, and nothing a key could be told from."""
    session: str = ""
    """What the client calls this conversation; only breaks ties between cached prefixes of equal length."""
    prediction: str = ""
    """What the answer is thought to be: a draft that changes nothing but the time it takes."""
    speculation: Literal["auto", "off"] = "auto"
    """`off`: nothing is drafted for this job."""
    priority: int = 0
    """When memory runs out the job of the lowest priority is preempted first. At `BACKGROUND_PRIORITY` it is computed
    only while no other is."""
    grows_to: int = 0
    """Tokens of context that the model could be loaded with: where it has fewer, and this job wants more, the job fails
    and tells how many. 0: it has to do with what there is."""
    resume: bytes = b""
    """What another worker of the model told when it preempted the job, which goes on there. Empty: from the start."""

    @property
    def sequences(self) -> int:
        """How many token streams the job is; the scheduler counts room in them."""
        return self.n


class Tokenize(Job, tag="tokenize", frozen=True):
    """Ask for the token ids of a prompt. Answered by `Tokenized`, then `Finished`."""

    prompt: ChatPrompt | TextPrompt
    add_special: bool = True
    pieces: bool = False

    @property
    def sequences(self) -> int:
        """None: it takes no room in the engine."""
        return 0


class Detokenize(Job, tag="detokenize", frozen=True):
    """Ask for the text of token ids. Answered by `Detokenized`, then `Finished`."""

    tokens: list[int]

    @property
    def sequences(self) -> int:
        """None: it takes no room in the engine."""
        return 0


class Embed(Job, tag="embed", frozen=True):
    """Ask for one vector per input. Answered by `Started`, `Embedded` (one or more), then `Finished`.

    It takes the room of one, however many inputs: they share steps with those of other jobs, as tokens allow.
    """

    inputs: list[str | list[int]]
    """Texts, which get the model's special tokens, or token ids of its own vocabulary, which are taken as they are."""
    dimensions: int | None = None
    """Keep the first so many numbers of each vector (Matryoshka); None keeps all."""
    normalize: bool = True
    """Scale every vector to length 1, after the cut."""
    first: int = 0
    """Which of its request's inputs the first one is: a large request comes as several jobs."""


class Rerank(Job, tag="rerank", frozen=True):
    """Ask how well each document answers a query. Answered like `Embed`, with one number per document."""

    query: str
    documents: list[str]
    first: int = 0
    """Which of its request's documents the first one is."""


TextJob = Generate | Tokenize | Detokenize
"""What an engine that generates text runs."""
VectorJob = Embed | Rerank | Tokenize | Detokenize
"""What an engine that gives vectors or scores runs."""
