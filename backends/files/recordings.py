"""Recordings as samples: any container of the list, decoded by PyAV a piece at a time, bounded in seconds.

Recordings come from strangers. The library sees an open file and never a path or a URL; containers that name other
files (playlists, concatenations) are not among those that it may read. Only the first audio stream is decoded.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

try:
    import av
    import av.error
except ImportError:  # an extra that hears is not installed
    av = None

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from numpy.typing import NDArray

RATE: Final = 16_000
"""Samples per second that models of speech hear."""
SHORTEST_S: Final = 0.1
"""Of shorter ones models imagine what is in them; OpenAI refuses them as well."""
INSTALL: Final = "pip install av"
_CONTAINERS: Final = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,tta,w64"
    ",wav,wv"
)
_KNOWN: Final = "wav, mp3, m4a, mp4, ogg, webm, flac"
_PIECE_S: Final = 10
_MOST_RATE: Final = 768_000
_MOST_CHANNELS: Final = 64
_MOST_BAD_PACKETS: Final = 20
_GOOD_FOR_EACH_BAD: Final = 50
"""Packets; recordings that were put together have a bad one at each joint."""
_MOST_SILENT_PACKETS: Final = 100_000
"""Packets in a row of which nothing comes."""


def missing() -> str | None:
    """Why nothing can be decoded here, with what to install; None where all is there."""
    return None if av is not None else f"PyAV is missing, which decodes recordings. hint: {INSTALL}"


class RecordingError(Exception):
    """Bytes that are no recording (`unsupported_media`), or one too long or too short (`invalid_value`); a clause."""

    def __init__(self, code: Literal["unsupported_media", "invalid_value"], told: str) -> None:
        super().__init__(told)
        self.code: Literal["unsupported_media", "invalid_value"] = code


class Recording:
    """What the bytes of one file hold, open until `close`."""

    def __init__(self, data: bytes, *, max_s: float, rate: int = RATE) -> None:
        """`rate`: samples per second that are wanted.

        Raises RecordingError where it is no audio, or is known to be too long before it is decoded.
        """
        self._max_s, self._rate = max_s, rate
        self.decoded_s = 0.0
        self._bytes = io.BytesIO(data)
        self._container, self._stream = self._opened()
        try:
            self._refuse_longer()
        except BaseException:
            self.close()
            raise

    def _refuse_longer(self) -> None:
        duration_s = self._duration_s()
        if duration_s is None:
            duration_s = self._counted_s()
        if duration_s > self._max_s:
            raise self._too_long(duration_s)

    def _opened(self) -> tuple[Any, Any]:
        self._bytes.seek(0)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        try:
            container = av.open(self._bytes, mode="r", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            raise _refused(f"it is no recording that can be read ({_words(error)})", known=True) from None
        streams = container.streams.audio
        if not streams:
            container.close()
            raise _refused("there is no sound in it", known=True)
        stream = streams[0]
        try:
            context = stream.codec_context
            rate, channels = int(context.sample_rate or 0), int(getattr(context, "channels", 0) or 0)
        except (av.error.FFmpegError, AttributeError, ValueError) as error:
            container.close()
            raise _refused(f"its sound cannot be decoded ({_words(error)})") from None
        if not 0 < rate <= _MOST_RATE or not 0 < channels <= _MOST_CHANNELS:
            container.close()
            raise _refused(f"it says that it has {channels} channels of {rate} samples a second")
        return container, stream

    def _duration_s(self) -> float | None:
        """What the container says; streams that were recorded live say nothing."""
        told = [float(self._container.duration) / 1e6] if self._container.duration else []
        if self._stream.duration and self._stream.time_base:
            told.append(float(self._stream.duration * self._stream.time_base))
        known = [one for one in told if math.isfinite(one) and one > 0]
        return max(known) if known else None

    def _counted_s(self) -> float:
        """The seconds of all packets, none of them decoded."""
        counted = 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.duration and packet.time_base:
                    counted += float(packet.duration * packet.time_base)
                if counted > self._max_s:
                    break
        except (av.error.FFmpegError, ValueError, OverflowError):
            pass  # told where it is decoded
        self._container.close()
        self._container, self._stream = self._opened()
        return counted

    def _too_long(self, duration_s: float) -> RecordingError:
        whole_tenths = math.ceil(10 * duration_s) / 10  # never the bound itself, which it is more than
        told = f"the recording has {whole_tenths:g} s, and {self._max_s:g} s are the most that this model takes"
        return RecordingError("invalid_value", f"{told}. hint: send it in parts, or set max_audio_s")

    def pieces(self) -> Iterator[NDArray[np.int16]]:
        """The samples, mono and `rate` a second, in pieces of about 10 s. Raises RecordingError."""
        held: list[NDArray[np.int16]] = []
        n_held = 0
        for samples in self._frames():
            held.append(samples)
            n_held += samples.size
            self.decoded_s += samples.size / self._rate
            if self.decoded_s > self._max_s + 1:
                raise self._too_long(self.decoded_s)
            if n_held >= _PIECE_S * self._rate:
                yield np.concatenate(held)
                held, n_held = [], 0
        if self.decoded_s < SHORTEST_S:
            told = f"the recording has {self.decoded_s:.2f} s, and {SHORTEST_S} s is the shortest that can be heard"
            raise RecordingError("invalid_value", told)
        if held:
            yield np.concatenate(held)

    def _frames(self) -> Iterator[NDArray[np.int16]]:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=self._rate)
        bad = good = silent = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except (av.error.FFmpegError, ValueError, OverflowError) as error:
                    bad += 1
                    if bad > _MOST_BAD_PACKETS + good // _GOOD_FOR_EACH_BAD or self.decoded_s == 0:
                        raise self._damaged(error) from None
                    continue
                good += 1
                silent = 0 if frames else silent + 1
                if silent > _MOST_SILENT_PACKETS:
                    raise _refused("there is no sound in it")
                for frame in frames:
                    for out in resampler.resample(frame):
                        yield out.to_ndarray().reshape(-1).astype(np.int16, copy=False)
            for out in resampler.resample(None):
                yield out.to_ndarray().reshape(-1).astype(np.int16, copy=False)
        except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> RecordingError:
        return _refused(f"it is damaged after {self.decoded_s:.1f} s ({_words(error)})")

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()
        self._bytes.close()


def _refused(why: str, *, known: bool = False) -> RecordingError:
    hint = f". hint: {_KNOWN} are" if known else ""
    return RecordingError("unsupported_media", f"{why}{hint}")


def _words(error: BaseException) -> str:
    told = getattr(error, "strerror", None) or str(error)
    return "".join(c for c in told if c.isprintable())[:80] or type(error).__name__
