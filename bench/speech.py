"""Recordings of a synthetic voice: our server in 8 bits beside faster-whisper in int8, and requests at once.

Both decode greedily with as many threads, take turns, and have loaded before the clock starts. Ours is asked over HTTP;
faster-whisper runs in a Python of its own, because it brings another CUDA and another set of packages.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import time
import urllib.request
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.serving import MODEL_NAME, running

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please close the window before you leave the house.",
    "There is a small garden behind the old church.",
    "She bought fresh bread and cheese at the market.",
    "The train to London leaves early in the morning.",
    "We walked along the river until it got dark.",
    "The children played in the park all afternoon.",
    "They are planning a trip to the mountains next summer.",
    "The teacher wrote the answer on the board.",
    "It is important to drink enough water every day.",
)
PER_CLIP = 4
"""Sentences of a clip, about 12 s."""
AT_ONCE = 4
_PEER = """
import json, sys, time
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=int(sys.argv[2]))
def text(clip):
    return "".join(one.text for one in model.transcribe(clip, beam_size=1, language="en", vad_filter=False)[0]).strip()
text(sys.argv[3])
for line in sys.stdin:
    begun = time.perf_counter()
    texts = [text(clip) for clip in sys.argv[3:]]
    print(json.dumps({"seconds": time.perf_counter() - begun, "texts": texts}), flush=True)
"""


@dataclass(frozen=True)
class Heard:
    """One round of the other side."""

    seconds: float
    texts: list[str]


def clips() -> list[bytes]:
    """As WAV files. Raises ImportError where the voice is missing."""
    import numpy as np
    from hibari import SAMPLE_RATE, Hibari

    voice, made = Hibari(), []
    for first in range(len(SENTENCES)):
        said = " ".join(SENTENCES[(first + n) % len(SENTENCES)] for n in range(PER_CLIP))
        written = io.BytesIO()
        with wave.open(written, "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((np.clip(voice(said, seed=first), -1, 1) * 32767).astype("<i2").tobytes())
        made.append(written.getvalue())
    return made


def measure(folder: Path, peer: Path, python: Path, *, rounds: int, threads: int) -> dict[str, float]:
    """Seconds of sound per second of each side, medians of the rounds, and what four at once are worth."""
    made = clips()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # of both sides, which are our children
    audio_s = sum(_seconds(clip) for clip in made)
    ours: list[float] = []
    theirs: list[float] = []
    gains: list[float] = []
    same = 0
    with tempfile.TemporaryDirectory() as place, running(_config(folder)) as server:
        files = [Path(place) / f"{number}.wav" for number in range(len(made))]
        for file, clip in zip(files, made, strict=True):
            file.write_bytes(clip)
        _asked(server.url, made[0])
        command = [str(python), "-c", _PEER, str(peer), str(threads), *map(str, files)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(rounds):
                begun = time.perf_counter()
                texts = [_asked(server.url, clip) for clip in made]
                ours.append(time.perf_counter() - begun)
                told = _peer(process)
                theirs.append(told.seconds)
                same = sum(one == other for one, other in zip(texts, told.texts, strict=True))
                gains.append(ours[-1] / _at_once(server.url, made))
            process.communicate()
    return {
        "audio_s": audio_s,
        "onecard_speed": audio_s / median(ours),
        "faster_whisper_speed": audio_s / median(theirs),
        "onecard_to_peer_ratio": median(other / own for own, other in zip(ours, theirs, strict=True)),
        "onecard_to_peer_ratio_limit": 0.7,
        "four_at_once_ratio": median(gains),
        "four_at_once_ratio_limit": 1.5,
        "same_texts": same / len(made),
    }


def _config(folder: Path) -> str:
    keys = f'path = "{folder.resolve()}"\nquantization = "bnb-8bit"\nparallel = {AT_ONCE}\n'
    return f"[models.{MODEL_NAME}]\n{keys}"


def _seconds(clip: bytes) -> float:
    with wave.open(io.BytesIO(clip)) as file:
        return float(file.getnframes() / file.getframerate())


def _asked(url: str, clip: bytes) -> str:
    """The text of one clip."""
    mark = "speech-bench"
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in (("model", MODEL_NAME), ("language", "en"))]  # fmt: skip
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'.encode()
    body = b"".join([*parts, head, clip, f"\r\n--{mark}--\r\n".encode()])
    headers = {"content-type": f"multipart/form-data; boundary={mark}"}
    request = urllib.request.Request(f"{url}/v1/audio/transcriptions", body, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(json.load(answer)["text"])


def _at_once(url: str, made: Sequence[bytes]) -> float:
    """Seconds of all clips, four requests at a time."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda clip: _asked(url, clip), made))
    return time.perf_counter() - begun


def _peer(process: subprocess.Popen[str]) -> Heard:
    """One round of the other side. Raises RuntimeError where it has ended."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the other side has no pipes")
    process.stdin.write("\n")
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"faster-whisper ended with {process.wait()}; it needs `pip install faster-whisper`")
    told = json.loads(line)
    return Heard(told["seconds"], told["texts"])
