"""Samples as a file of the wanted format, a piece at a time; what is complete can be sent before the rest is made."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np

from backends.voice.kind import RATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from backends.voice.kind import SoundFormat

_CODECS: Final[Mapping[str, tuple[str, str, int]]] = {
    "mp3": ("mp3", "libmp3lame", 24_000),
    "opus": ("ogg", "libopus", 48_000),
    "aac": ("adts", "aac", 24_000),
    "flac": ("flac", "flac", 24_000),
}
"""Container, codec, samples per second."""
_BIT_RATE: Final = 64_000
_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "mp3": {"write_xing": "0", "id3v2_version": "0"},
    "opus": {"page_duration": "200000"},
}
"""Nothing that is written once the length is known; pages of 0.2 s."""
_UNKNOWN: Final = 0xFFFFFFFF
"""As a length in a WAV header: to the end of the file."""


class _Sink:
    """What the library writes to; it cannot go back, as no network can."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        """Called by PyAV."""
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All since the last call."""
        data, self._parts = b"".join(self._parts), []
        return data


class Encoder:
    """One file."""

    def __init__(self, form: SoundFormat, *, tempo: float = 1.0) -> None:
        """`tempo`: by so much it is faster than the samples, with their pitch."""
        self._form = form
        self._tempo = None if tempo == 1.0 else _Tempo(tempo)
        self._is_begun = False
        self.n_samples = 0
        """Said so far."""
        if form in _CODECS:
            container, codec, rate = _CODECS[form]
            self._sink = _Sink()
            options = {**_OPTIONS.get(form, {}), "flush_packets": "1"}
            self._out: Any = av.open(self._sink, "w", format=container, options=options)
            self._stream: Any = self._out.add_stream(codec, rate=rate)
            self._stream.codec_context.layout = "mono"
            if form != "flac":
                self._stream.codec_context.bit_rate = _BIT_RATE
            self._out.start_encoding()
            context = self._stream.codec_context
            self._resampler = av.AudioResampler(
                format=context.format, layout="mono", rate=rate, frame_size=context.frame_size or 0
            )

    def write(self, sound: NDArray[np.float32]) -> bytes:
        """`(n,)` samples of -1..1, `RATE` a second, as far as they make complete bytes of the file."""
        samples = (np.clip(sound, -1, 1) * 32767).astype("<i2")
        return self._write(samples if self._tempo is None else self._tempo.write(samples))

    def _write(self, samples: NDArray[np.int16]) -> bytes:
        self.n_samples += samples.size
        if self._form not in _CODECS:
            begin = b"" if self._is_begun or self._form == "pcm" else _wav_header()
            self._is_begun = True
            return begin + samples.tobytes()
        if samples.size:
            self._encode(_frame(samples))
        return self._sink.take()

    def end(self) -> bytes:
        """The rest of the file."""
        rest = b"" if self._tempo is None else self._write(self._tempo.end())
        if self._form not in _CODECS:
            return rest
        self._encode(None)
        self._out.mux(self._stream.encode(None))
        self._out.close()
        return rest + self._sink.take()

    def close(self) -> None:
        """Nothing more is wanted of it."""
        if self._form in _CODECS:
            self._out.close()

    def _encode(self, frame: Any) -> None:
        for one in self._resampler.resample(frame):
            self._out.mux(self._stream.encode(one))


class _Tempo:
    """Faster or slower speech of the same pitch: ffmpeg's `atempo`, which takes 0.5 to 100."""

    def __init__(self, tempo: float) -> None:
        self._graph = av.filter.Graph()
        source = self._graph.add_abuffer(sample_rate=RATE, format="s16", layout="mono", time_base=_time_base())
        stretch = self._graph.add("atempo", f"{tempo:.4f}")
        shape = self._graph.add("aformat", f"sample_fmts=s16:sample_rates={RATE}:channel_layouts=mono")
        sink = self._graph.add("abuffersink")
        for one, other in ((source, stretch), (stretch, shape), (shape, sink)):
            one.link_to(other)
        self._graph.configure()
        self._at = 0

    def write(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """`(n,)` -> what is complete of it."""
        frame = _frame(samples)
        frame.pts, frame.time_base = self._at, _time_base()
        self._at += samples.size
        self._graph.push(frame)
        return self._pulled()

    def end(self) -> NDArray[np.int16]:
        """The rest."""
        self._graph.push(None)
        return self._pulled()

    def _pulled(self) -> NDArray[np.int16]:
        found = []
        while True:
            try:
                found.append(self._graph.pull().to_ndarray().reshape(-1))
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(found) if found else np.zeros(0, dtype=np.int16)


def _time_base() -> Any:
    from fractions import Fraction

    return Fraction(1, RATE)


def _frame(samples: NDArray[np.int16]) -> Any:
    frame: Any = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
    frame.rate = RATE
    return frame


def _wav_header() -> bytes:
    """16-bit mono of a length that is not known yet."""
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    head = struct.pack("<4sI4s4sI", b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", len(form))
    return head + form + struct.pack("<4sI", b"data", _UNKNOWN)
