"""One token stream of an engine and the job it belongs to: plain records, changed by the engine alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from backends.generation.row_layout import TEXT_ALONE
from backends.messages import BACKGROUND_PRIORITY, ChatPrompt, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from backends.constraints.guides import GuidePlan
    from backends.constraints.masks import TokenMask
    from backends.formats.splitter import Splitter
    from backends.generation.bookmark import Bookmark
    from backends.generation.decoder import TokenSampler
    from backends.generation.row_layout import RowLayout
    from backends.generation.scoring import Echo
    from backends.generation.sequence_drafts import SequenceDrafts
    from backends.messages import ErrorCode, Event, Generate, Looked
    from backends.prefix.entry_files import EntryFile
    from backends.prefix.keys import Keys
    from backends.prompts.text import TextStream


class Phase(Enum):
    """`waiting -> prefill -> decode`; a preempted one goes to `waiting` again."""

    WAITING = "it has a slot and no cells"
    PREFILL = "its prompt is being computed"
    DECODE = "a token per step"


@dataclass(frozen=True, slots=True)
class PreparedGenerate:
    """A `Generate` with its prompt as tokens and its length decided."""

    job: Generate
    prompt: NDArray[np.int32]
    limit: int
    """Tokens each choice may have."""
    thinking: bool
    echo: str = ""
    """What every choice begins with."""
    scored: Echo | None = None
    """The same with log-probabilities."""
    omitted: int = 0
    """Files of a fill-in-the-middle prompt that were left out."""
    layout: RowLayout = TEXT_ALONE
    """Which of its rows are tokens; in rows of media `prompt` holds anything."""
    plan: GuidePlan | None = None
    """What restricts and counts its tokens; None where nothing does."""
    borders: tuple[int, ...] = ()
    """Lengths at which prompts like it are likely to part from it: see `Tokenizer.borders`."""
    new_splitter: Callable[[], Splitter | None] = lambda: None
    """Sorts one choice's text, for stop strings; None where all of it is content."""
    prediction: tuple[int, ...] = ()
    """Tokens that the client thinks its answer has."""
    bookmark: Bookmark | None = None
    """Where it goes on, when it was preempted; None: at the start."""
    looked: Looked | None = None
    """What its media cost."""

    @property
    def started(self) -> Started:
        """What is told when it begins."""
        n_prompt = int(self.prompt.size)
        return Started(self.job.id, n_prompt, thinking=self.thinking, omitted=self.omitted, looked=self.looked)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(slots=True, eq=False)
class GenerationRequest:
    """One running job: what its choices share."""

    job: Generate
    prompt: NDArray[np.int32]
    limit: int
    unstarted: list[int]
    """Choices that have no sequence yet, in order."""
    n_open: int
    """Choices that have not finished."""
    opening: list[Event]
    """What the client is told once the first choice has its place."""
    entry: EntryFile | None = None
    """The cached prefixes in the store, for choices that wait for a slot; None: they compute what they find nowhere."""
    cut_short: ErrorCode | None = None
    """Why it ends before its time."""
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that were found computed."""
    preemptions: int = 0
    layout: RowLayout = TEXT_ALONE
    plan: GuidePlan | None = None
    new_splitter: Callable[[], Splitter | None] = lambda: None
    prediction: tuple[int, ...] = ()
    """Of `PreparedGenerate`."""
    predicted_tokens: int = 0
    """Of the prediction, once for each choice, where it is used."""
    foretold_tokens: int = 0
    """Those of the choices that came as the prediction had them."""
    reasoning_tokens: int = 0
    echo: Echo | None = None
    """The prompt with its log-probabilities, where the client wants it."""
    borders: tuple[int, ...] = ()
    """Of `PreparedGenerate`."""
    shows_marks: bool = field(init=False)
    """Marks of calls and reasoning are text even where the vocabulary has them as control tokens."""

    def __post_init__(self) -> None:
        self.shows_marks = isinstance(self.job.prompt, ChatPrompt) or self.job.constraint is not None

    @property
    def scoring(self) -> bool:
        """Its prompt is computed for the log-probabilities, so nothing computed before is of use."""
        return self.echo is not None and self.echo.scoring

    @property
    def domain(self) -> str:
        """Whose cached prefixes it may use; a job that shares with no other has a domain of its own."""
        return self.job.cache_domain if self.job.cache_prompt else f"{self.job.cache_domain}\0{self.job.id}"


@dataclass(slots=True, eq=False)
class Sequence:
    """One token stream in one slot of the context."""

    request: GenerationRequest
    index: int
    slot: int
    sampler: TokenSampler
    text: TextStream
    target: NDArray[np.int32]
    """What has to be computed before its next token is chosen: the prompt, and what it had generated when preempted."""
    order: int
    """Counts up: the youngest has the highest."""
    since_us: float
    """When it came, on the engine's clock."""
    phase: Phase = Phase.WAITING
    hurried: bool = False
    """A step of its prompt was ended before its time: none is again so long that it might be."""
    n_past: int = 0
    """Rows computed, each with a cell; the next one's position is `n_saved` less once the prompt is there."""
    pause_at: int = 0
    """A length at which it makes a stop, because a prompt that begins like it waits for so much; 0: nowhere."""
    stops: tuple[int, ...] = ()
    """Lengths, ascending, at which a checkpoint is taken: a step ends there."""
    checkpoints: list[EntryFile] = field(default_factory=list)
    """Those that it carries while it runs."""
    token: int = -1
    """The token to compute next, while it decodes."""
    generated: list[int] = field(default_factory=list)
    n_unsent: int = 0
    """Tokens generated since the last delta."""
    draft: list[int] = field(default_factory=list)
    """What is thought to follow `token`; computed in the same step, and empty again behind it."""
    drafts: SequenceDrafts | None = None
    """Where its drafts come from; None: it has none."""
    entry: EntryFile | None = None
    """Where its state is while it is preempted; None: it is computed again."""
    guide: TokenMask | None = field(init=False)
    n_saved: int = field(init=False)
    """Cells of its prompt beyond its positions."""

    def __post_init__(self) -> None:
        self.guide = None if self.request.plan is None else self.request.plan.start()
        self.n_saved = self.request.layout.n_saved

    @property
    def background(self) -> bool:
        """It is computed only while no other is."""
        return self.request.job.priority <= BACKGROUND_PRIORITY

    @property
    def keys(self) -> Keys:
        """What its target is found by."""
        return self.request.layout.keys(self.target)

    @property
    def n_ahead(self) -> int:
        """Rows of its prompt that the next step may compute: tokens, or those of one medium."""
        end = min((at for at in (self.pause_at, *self.stops) if at > self.n_past), default=self.target.size)
        return min(end, self.request.layout.run(self.n_past)) - self.n_past

    @property
    def stands(self) -> bool:
        """It is at a place where others may begin."""
        return self.n_past == self.pause_at or self.n_past in self.stops

    @property
    def n_generated(self) -> int:
        """Tokens chosen so far."""
        return len(self.generated)

    @property
    def history(self) -> NDArray[np.int32]:
        """Prompt and output, `(n,) int32`."""
        return np.concatenate([self.request.prompt, np.array(self.generated, dtype=np.int32)])
