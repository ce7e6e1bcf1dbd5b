"""One voice as mathematics: a piece of text to phonemes to samples. Owns the calls of hibari and onnxruntime.

The library is given what was read of the file and nothing else: its own ways of finding voices ask the network.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hibari
import numpy as np
import onnxruntime
from hibari import dsp
from hibari.g2p import G2P
from hibari.voices import VOICES

from backends.engine import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MOST_PHONEMES: Final = 300
"""Of what is computed at once, about 18 s of speech: numbers and abbreviations grow when they are read."""
_ASSETS: Final = Path(hibari.__file__).parent / "assets"


class Reader:
    """Words to phonemes, in one accent; all its voices share it."""

    def __init__(self, *, british: bool) -> None:
        self._g2p = G2P(british=british)
        self._known: dict[str, int] = json.loads((_ASSETS / "vocab.json").read_text(encoding="utf-8"))

    def phonemes(self, text: str) -> list[int]:
        """The numbers of its phonemes. Raises JobError where the library cannot read it."""
        try:
            found = self._g2p(text)
        except (IndexError, KeyError, ValueError, RecursionError, TypeError, AttributeError) as error:
            told = f"a part of the text cannot be read aloud ({type(error).__name__}): {text[:60]!r}"
            raise JobError("invalid_value", told, param="text") from None
        return [self._known[c] for c in found if c in self._known]

    def cut(self, ids: list[int]) -> Iterator[list[int]]:
        """In parts of at most `MOST_PHONEMES`, between words where there are some."""
        while len(ids) > MOST_PHONEMES:
            spaces = [at for at in range(1, MOST_PHONEMES) if ids[at] == self._known.get(" ")]
            at = spaces[-1] if spaces else MOST_PHONEMES
            yield ids[:at]
            ids = ids[at:]
        if ids:
            yield ids


class Speaker:
    """A loaded voice."""

    def __init__(self, data: bytes, reader: Reader, *, n_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # else the longest piece's memory is held for ever
        self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._reader = reader

    def say(self, text: str, speed: float) -> tuple[int, NDArray[np.float32]]:
        """How many phonemes it has, and `(n,)` samples. Raises JobError."""
        ids = self._reader.phonemes(text)
        parts = [self._sound(some, speed) for some in self._reader.cut(ids)]
        return len(ids), np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def _sound(self, ids: list[int], speed: float) -> NDArray[np.float32]:
        given = {"ids": np.asarray([[0, *ids, 0]], dtype=np.int64), "speed": np.asarray([speed], dtype=np.float32)}
        computed = [one[0] for one in self._session.run(None, given)]
        sound: NDArray[np.float32] = dsp.synth(*computed, np.random.default_rng(0))
        return sound


def is_british(data: bytes) -> bool:
    """Whether the library knows the file as a British voice."""
    digest = hashlib.sha256(data).hexdigest()
    return any(voice["british"] for voice in VOICES.values() if voice["sha256"] == digest)
