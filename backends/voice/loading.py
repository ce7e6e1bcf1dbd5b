"""From a `LoadModel` message to a running engine over hibari's voices, with its `Ready`'s figures."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.backend import HeaderError
from backends.engine import LoadError
from backends.files import model_files
from backends.machine.crash_reason import in_words
from backends.machine.kernel import anonymous_bytes, give_back_freed
from backends.messages import LoadModel, Ready
from backends.voice import arithmetic
from backends.voice.engine import SLOWEST, VoiceEngine
from backends.voice.header import VOICE_BYTES, Voice, read
from backends.voice.kind import VoiceFacts, VoicePlan
from backends.voice.speaker import Reader, Speaker, is_british

if TYPE_CHECKING:
    from backends.voice.header import VoiceHeader

_WARM_UP: Final = "One, two, three."


def load(spec: LoadModel[VoicePlan], progress: Callable[[float], None]) -> VoiceEngine:
    """Load the voices as `spec` says. Raises LoadError."""
    try:
        header = read(Path(spec.path))
        accent = str(spec.options.get("accent", "auto"))
        readers: dict[bool, Reader] = {}
        speakers = {}
        for number, voice in enumerate(header.voices):
            data = model_files.read_bytes(voice.path, VOICE_BYTES)
            british = _british(voice, data, accent)
            if british not in readers:
                readers[british] = Reader(british=british)
            speakers[voice.name] = _speaker(voice.name, data, readers[british], n_threads=spec.threads or 1)
            progress((number + 1) / (len(header.voices) + 1))
    except (HeaderError, model_files.FileError) as error:
        raise LoadError(str(error)) from None
    progress(1.0)
    return VoiceEngine(speakers, _ready(header, spec.plan))


def _british(voice: Voice, data: bytes, accent: str) -> bool:
    if accent != "auto":
        return accent == "british"
    return voice.is_british or is_british(data)


def _speaker(name: str, data: bytes, reader: Reader, *, n_threads: int) -> Speaker:
    """A voice that has said something. Raises LoadError."""
    try:
        speaker = Speaker(data, reader, n_threads=n_threads)
        said = speaker.say(_WARM_UP, SLOWEST)[1]
    except Exception as error:  # whatever a stranger's file makes the library raise is a failed load
        raise LoadError(f"the voice {name} cannot be loaded: {in_words(error)}") from error
    if said.size == 0 or not bool(np.isfinite(said).all()):
        raise LoadError(f"the voice {name} says nothing. hint: its file may be broken")
    return speaker


def _ready(header: VoiceHeader, plan: VoicePlan) -> Ready[VoiceFacts]:
    """With what this process takes once its longest piece is said."""
    gc.collect()
    give_back_freed()
    weights, compute = arithmetic.weight_bytes(header), arithmetic.compute_bytes(plan)
    parts = {"weights": weights, "compute": compute, "runtime": max(0, anonymous_bytes() - weights)}
    on_card = plan.device == "cuda"
    return Ready(
        VoiceFacts(header.names),
        plan.parallel,
        measured_bytes=0 if on_card else sum(parts.values()),
        parts={} if on_card else parts,
        host_parts=parts if on_card else {},
        capabilities=header.capabilities,
        engine=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("hibari-tts", "onnxruntime")),
    )
