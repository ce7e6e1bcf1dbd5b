"""What a kind of model is to everything outside its own folder: one `Backend`, which knows its files, plans and bytes.

Light enough for the server and the worker alike: no inference library is imported here, nor by any `Backend`. The
objects stand in `backends.registry`; what loads and computes is named by `Backend.engine` and imported in the worker.
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

from backends.files.sampling_defaults import SamplingDefaults
from backends.messages import LoadPlan, MediaKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from backends.choices import Choices
    from backends.files.adapters import Adapter
    from backends.kinds import AnyKind
    from backends.options import Options
    from backends.plan import Amount, Footprint, Wish
    from backends.speed import Speeds

Gives = str
"""What a model answers with: the `gives` of one of its backend's kinds."""
Setting = bool | int | float | str
AT_MOST: Final = "_at_most"
"""Ends the name of an option that stands for all models: one that has less of it takes what it has."""


DRAFT: Final = "_draft"
"""The option that names the path of the model that drafts for one; behind it and a dot, that model's own options."""
MTP: Final = "_mtp"
"""The option that lets a file's own layer draft that predicts further tokens; True: there has to be one."""


class HeaderError(Exception):
    """Files that are no sound model of their kind; the message is a sentence without their path."""


@dataclass(frozen=True)
class Files:
    """What a backend has recognised as a model of its own."""

    weights: tuple[Path, ...]
    """The files that a load reads."""
    beside: tuple[Path, ...] = ()
    """Files that may belong to the model too: what they hold decides what it can do."""

    @property
    def size_bytes(self) -> int:
        """Of the weights. Raises OSError."""
        return sum(file.stat().st_size for file in self.weights)


class Header(Protocol):
    """What the files of a model say about it, as far as the server needs it; read and checked by its backend.

    What only models of text have is 0 or empty here, for headers of others to inherit.
    """

    backend: ClassVar[str]
    """The name of the backend that has read it."""

    @property
    def gives(self) -> Gives:
        """What the model answers with."""
        ...

    @property
    def about(self) -> Mapping[str, str]:
        """What else a person wants to know, by the word for it: architecture, parameters, quantisation, licence."""
        return {}

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context the model was trained for; 0 where the files do not say."""
        return 0

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return 0

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return 0

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token; 0 where it is not known."""
        return 0

    @property
    def tokens_cover_text(self) -> bool:
        """Whether every character of a text is in some token: word pieces drop spaces and unknown words."""
        return False

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        ...

    def forbids(self, kv_type: str) -> str | None:
        """Why its KV cache cannot have this type, in a sentence with a hint; None where nothing speaks against it."""
        return None

    @property
    def sampling(self) -> SamplingDefaults:
        """How its makers want tokens chosen."""
        return SamplingDefaults()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the operator should know, a sentence each."""
        return ()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """LoRA adapters that are configured for it, fitting or not."""
        return ()


HeaderT = TypeVar("HeaderT")
PlanT = TypeVar("PlanT", bound=LoadPlan)


class Backend(Protocol[HeaderT, PlanT]):
    """One kind of model: its files, its options, its plans and their bytes. Stateless."""

    name: str
    """As configuration, metrics and messages have it."""
    files: str
    """What it serves, for people: `a GGUF file`."""
    kinds: Sequence[AnyKind]
    """The kinds of jobs that its models run."""
    engine: str
    """`module:function` that loads a model; imported in a worker only."""
    extra: str
    """The extra of onecard that brings its libraries; empty where it needs none."""
    routes: Sequence[str]
    """Modules that hold a `router` for its kinds; imported in the server only. Empty: the server has theirs."""
    dry: str | None
    """The module whose process tells what a load would allocate; None: there is none, and arithmetic has to do."""
    baseline: str | None
    """The module of a program that computes without our engine, which the bench holds us against."""
    refuses: Mapping[str, str]
    """Keys of the general configuration or of other backends that ask for what it has not: key -> why, as a clause."""
    packages: Sequence[str]
    """Distributions whose versions its estimates and learned figures depend on."""
    components: Sequence[str]
    """What its footprints consist of beside what those of all have: the names in `plan.Parts.further`."""
    media: Sequence[MediaKind]
    """What some of its models read beside text; which ones is told by the capabilities of their headers."""
    choices: Choices[HeaderT, PlanT]
    """What is told of its plans, and what else could be chosen."""
    speeds: Speeds[HeaderT, PlanT] | None
    """How fast its plans are; None where that is not foretold."""

    def options(self) -> type[Options]:
        """Its own keys of a model's configuration; imported when asked for, because only the server needs pydantic."""
        ...

    def recognise(self, path: Path) -> Files | None:
        """The files behind a path that is there, where their content is a model of this kind; None where it is not.

        Raises HeaderError where it is, and some of it is missing; blocks on the disk.
        """
        ...

    def claims(self, reference: str) -> bool:
        """Whether a path or reference that leads to no files reads like one of this kind of model."""
        ...

    def describe(self, path: Path, options: Mapping[str, Setting]) -> HeaderT:
        """Read and check the files; `options` are those keys that were written down. Raises HeaderError; blocks."""
        ...

    def plans(self, header: HeaderT, wish: Wish) -> Iterator[PlanT]:
        """Acceptable plans, best first; at least one."""
        ...

    def longest_context(self, header: HeaderT, context: int | None) -> int | None:
        """The most tokens a request can ever use; `context` is the configured one, None for `auto`.

        None for models that read no text.
        """
        ...

    def estimate(self, header: HeaderT, plan: PlanT) -> Footprint:
        """The bytes a plan takes of either memory, computed from the header at once."""
        ...

    def card_share(self, header: HeaderT, plan: PlanT) -> float:
        """The part of a model's cache that lies on the card, 0..1; 0 on a machine without one."""
        ...

    def runtime_bytes(self, header: HeaderT, plan: PlanT) -> Amount:
        """What a process takes before a model is in it: the part of an estimate that this machine's median replaces."""
        ...


AnyBackend = Backend[Any, Any]


def version_of(backend: AnyBackend) -> str:
    """The versions of the libraries that its figures are of; other versions may take other amounts."""
    return "+".join(version_of_package(package) for package in backend.packages)


@functools.cache
def version_of_package(package: str) -> str:
    """A distribution with its version, `transformers-5.24.0`; `-none` where it is not installed."""
    try:
        return f"{package}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}-none"
