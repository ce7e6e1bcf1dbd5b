"""Which kinds of model and which kinds of jobs there are. A new kind of model adds its line to `_KNOWN`.

One that is installed beside onecard is named in the environment instead, `ONECARD_BACKENDS=module:Class`, and is one
like the others from there on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from backends.bnb.backend import Folders
from backends.diffusion.backend import Drawings
from backends.engine import AnyEngine, LoadError
from backends.gguf.backend import Gguf
from backends.messages import Job, LoadModel
from backends.speech.backend import Speech
from backends.voice.backend import Voices

if TYPE_CHECKING:
    from pathlib import Path

    from backends.backend import AnyBackend, Files, Header
    from backends.kinds import AnyKind
    from backends.messages import LoadPlan
    from backends.plan import Footprint

FURTHER: Final = "ONECARD_BACKENDS"
"""Environment variable that names further backends, `module:Class` with commas between: server and workers see it."""


def named(reference: str) -> Any:
    """What a `module:name` names. Raises ImportError or AttributeError."""
    module, _, name = reference.partition(":")
    with _no_collections():
        return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Modules stay: the collector only walks over more and more of them, an eighth of the time of 3000 imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_KNOWN: Final[tuple[AnyBackend, ...]] = (
    *(named(reference.strip())() for reference in os.environ.get(FURTHER, "").split(",") if reference.strip()),
    Gguf(),
    Speech(),
    Voices(),
    Drawings(),
    Folders(),
)
"""In the order in which they are asked whether files are theirs: who knows them best comes first."""
BACKENDS: Final[Mapping[str, AnyBackend]] = MappingProxyType({backend.name: backend for backend in _KNOWN})
"""By name."""
KINDS: Final[Mapping[type[Job], AnyKind]] = MappingProxyType(
    {kind.job: kind for backend in _KNOWN for kind in backend.kinds}
)
"""All kinds of jobs, by their messages."""

TEST_ENGINE: Final = "ONECARD_TEST_ENGINE"
"""Environment variable with which tests put their own `module:function` in place of every engine."""

Load = Callable[[LoadModel, Callable[[float], None]], AnyEngine]
"""Builds the engine, reporting a share of 0..1 while loading. Raises LoadError."""


def recognised(path: Path) -> tuple[AnyBackend, Files] | None:
    """Whose model the files behind a path are, by their content; None where no backend knows them.

    Raises HeaderError or FileError; blocks on the disk.
    """
    for backend in BACKENDS.values():
        if (files := backend.recognise(path)) is not None:
            return backend, files
    return None


def kind_of(job: Job) -> AnyKind:
    """The kind of a job."""
    return KINDS[type(job)]


def kind_giving(gives: str) -> AnyKind:
    """The kind of jobs that a model is for, by what its header says it gives."""
    return next(kind for kind in KINDS.values() if kind.gives == gives)


def backend_of(header: Header) -> AnyBackend:
    """The backend that has read the header."""
    return BACKENDS[header.backend]


def estimate(header: Header, plan: LoadPlan) -> Footprint:
    """The bytes a plan takes, computed from the header."""
    return backend_of(header).estimate(header, plan)


def engine_of(name: str) -> Load:
    """Import the engine of the backend of that name: the function that loads a model with it. Raises LoadError."""
    backend = BACKENDS.get(name)
    target = os.environ.get(TEST_ENGINE) or (backend.engine if backend is not None else None)
    if target is None:
        raise LoadError(f"this version has no '{name}' backend; it serves: {', '.join(sorted(BACKENDS))}")
    try:
        load: Load = named(target)
    except ImportError as error:
        missing = error.name or target.partition(":")[0]
        hint = f". hint: pip install 'onecard[{backend.extra}]'" if backend is not None and backend.extra else ""
        raise LoadError(f"the '{name}' backend is not installed (module {missing} is missing){hint}") from error
    return load
