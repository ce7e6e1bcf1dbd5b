"""Sounds for tests: a voice that speaks, silence, noise, and files of them."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

RATE = 24_000
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please close the window before you leave the house.",
    "There is a small garden behind the old church.",
)
Samples = NDArray[np.int16]


def spoken(*sentences: str, pause_s: float = 0.8) -> Samples:
    """The sentences with pauses between them."""
    voice = pytest.importorskip("hibari").Hibari()
    parts: list[Samples] = []
    for sentence in sentences:
        parts += [(np.asarray(voice(sentence)) * 32_000).clip(-32_768, 32_767).astype(np.int16), silence(pause_s)]
    return np.concatenate(parts[:-1])


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), dtype=np.int16)


def noise(seconds: float, *, loud: int = 1500) -> Samples:
    return np.random.default_rng(7).normal(0, loud, round(seconds * RATE)).astype(np.int16)


def wav(samples: Samples, *, rate: int = RATE) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return written.getvalue()


def encoded(samples: Samples, container: str, codec: str, *, bit_rate: int = 64_000) -> bytes:
    """As a recorder writes it: `webm` of a browser says no duration."""
    av: Any = pytest.importorskip("av")
    written = io.BytesIO()
    with av.open(written, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=48_000 if codec == "libopus" else RATE)
        stream.bit_rate = bit_rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate, frame_size=960)
        frame: Any = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
        frame.rate = RATE
        for one in (frame, None):
            for piece in resampler.resample(one):
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return written.getvalue()


def video(samples: Samples | None) -> bytes:
    """A film of grey frames, with this sound or none."""
    av: Any = pytest.importorskip("av")
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as out:
        picture: Any = out.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        sound: Any = out.add_stream("aac", rate=RATE) if samples is not None else None
        for _ in range(10):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, dtype=np.uint8))))
        out.mux(picture.encode(None))
        if samples is not None:
            frame: Any = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
            frame.rate = RATE
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE, frame_size=1024)
            for one in (frame, None):
                for piece in resampler.resample(one):
                    out.mux(sound.encode(piece))
            out.mux(sound.encode(None))
    return written.getvalue()
