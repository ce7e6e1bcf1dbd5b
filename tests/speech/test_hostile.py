"""Recordings that were made to harm: refused or heard, never a crash, another file, a connection or much memory."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.speech.sound import encoded, noise, silence, video, wav

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
N_MUTANTS = 300


def decoded(folder: Path) -> tuple[dict[str, str], int]:
    """What becomes of each file, and the memory that all took."""
    pytest.importorskip("av")
    command = [sys.executable, "-m", "tests.speech.decode_all", str(folder)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    answer = json.loads(told.stdout)
    return answer["found"], answer["more_bytes"]


def sound() -> dict[str, bytes]:
    samples = noise(1.5)
    return {
        "wav": wav(samples),
        "mp3": encoded(samples, "mp3", "libmp3lame"),
        "webm": encoded(samples, "webm", "libopus"),
        "flac": encoded(samples, "flac", "flac"),
        "ogg": encoded(samples, "ogg", "libopus"),
    }


def mutants(chance: random.Random) -> Iterator[bytes]:
    """Cut, damaged at the beginning and in the middle, sizes that lie, two in one, and parts twice."""
    kinds = list(sound().values())
    while True:
        whole = bytearray(chance.choice(kinds))
        match chance.randrange(6):
            case 0:
                del whole[chance.randrange(1, len(whole)) :]
            case 1:
                for _ in range(chance.randrange(1, 20)):
                    whole[chance.randrange(min(200, len(whole)))] = chance.randrange(256)
            case 2:
                for _ in range(chance.randrange(1, 200)):
                    whole[chance.randrange(len(whole))] = chance.randrange(256)
            case 3:
                at = chance.randrange(max(1, len(whole) - 8))
                whole[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
            case 4:
                other = chance.choice(kinds)
                whole[chance.randrange(len(whole)) :] = other[chance.randrange(len(other)) :]
            case _:
                begin = chance.randrange(len(whole))
                whole += whole[begin:] * chance.randrange(1, 4)
        yield bytes(whole)


def test_damaged_recordings_are_heard_or_refused(tmp_path: Path) -> None:
    made = mutants(random.Random(21))
    for number in range(N_MUTANTS):
        (tmp_path / f"{number:03}").write_bytes(next(made))
    found, more_bytes = decoded(tmp_path)
    counted = Counter(found.values())
    assert set(counted) <= {"heard", "unsupported_media", "invalid_value"}
    assert min(counted["heard"], counted["unsupported_media"]) > 20
    assert more_bytes < 300 * MIB


def header(*, channels: int = 1, rate: int = 16_000, bits: int = 16, n_bytes: int = 32_000) -> bytes:
    """A WAV file that says so."""
    data = b"\0" * 32_000
    format_ = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits
    )
    body = b"WAVEfmt " + struct.pack("<I", 16) + format_ + b"data" + struct.pack("<I", n_bytes) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


LIES: dict[str, tuple[bytes, set[str]]] = {
    "no channels": (header(channels=0), {"unsupported_media"}),
    "60000 channels": (header(channels=60_000), {"unsupported_media"}),
    "no samples a second": (header(rate=0), {"unsupported_media"}),
    "four billion samples a second": (header(rate=2**32 - 1), {"unsupported_media"}),
    "192 kHz": (wav(noise(1), rate=192_000), {"heard"}),
    "three bits": (header(bits=3), {"unsupported_media", "heard"}),
    "more data than there is": (header(n_bytes=2**31), {"heard", "invalid_value"}),
    "nothing behind the header": (header()[:44], {"invalid_value", "unsupported_media"}),
    "a picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, {"unsupported_media"}),
    "a program": (b"\x7fELF" + b"\0" * 500, {"unsupported_media"}),
    "zeros": (b"\0" * 100_000, {"unsupported_media"}),
    "text": (b"a" * 100_000, {"unsupported_media"}),
}


def test_headers_that_lie(tmp_path: Path) -> None:
    for number, (content, _) in enumerate(LIES.values()):
        (tmp_path / f"{number:02}").write_bytes(content)
    found, more_bytes = decoded(tmp_path)
    told = dict(zip(LIES, found.values(), strict=True))
    assert {name: code for name, code in told.items() if code not in LIES[name][1]} == {}
    assert more_bytes < 100 * MIB


def test_hours_of_silence_take_no_memory(tmp_path: Path) -> None:
    """Given 40 minutes, of which a whole copy has 77 MB, then no more than a window is ever held."""
    minute = encoded(silence(60), "mp3", "libmp3lame", bit_rate=8_000)
    (tmp_path / "long.mp3").write_bytes(minute * 40)
    found, more_bytes = decoded(tmp_path)
    assert found == {"long.mp3": "heard"}
    assert more_bytes < 50 * MIB


@pytest.mark.parametrize("text", [
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.wav'\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n",
    '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>http://127.0.0.1:{port}/</BaseURL></AdaptationSet></Period>'
    "</MPD>",
])  # fmt: skip
def test_nothing_is_fetched_that_a_file_names(tmp_path: Path, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for name in ("a.m3u8", "a.wav"):
            (tmp_path / name).write_text(text.format(port=listener.getsockname()[1]))
        assert set(decoded(tmp_path)[0].values()) == {"unsupported_media"}
        with pytest.raises(BlockingIOError):
            listener.accept()


def referring(entry: bytes) -> bytes:
    """A film whose sound track says that its samples are elsewhere: its `dref` has this entry, and not `itself`."""
    whole = video(noise(1))
    at = whole.rindex(b"url \0\0\0\1") - 4  # the sound's, behind the pictures'
    made = struct.pack(">I", len(entry) + 4) + entry
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        size_at = whole.rindex(box, 0, at + 4) - 4
        size = struct.unpack(">I", whole[size_at : size_at + 4])[0] + len(made) - 12
        whole = whole[:size_at] + struct.pack(">I", size) + whole[size_at + 4 :]
    return whole[:at] + made + whole[at + 12 :]


def alias(path: str, *, levels: int) -> bytes:
    """QuickTime's record of another file: its path, and how many folders up and down it is from this one."""
    place = path.encode() + b"\0" * (len(path) % 2)
    head = b"alis" + b"\0" * 14 + struct.pack(">B27s12xB63s16x", 0, b"", 4, b"pipe")
    return head + struct.pack(">HH16xHH", levels, levels, 2, len(place)) + place + b"\xff\xff\0\0"


def test_no_other_file_is_opened_for_a_track(tmp_path: Path) -> None:
    """Given tracks whose samples are in a pipe and at an address, then the pipe has no reader and no one connects."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    folder = tmp_path / "files"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.wav".encode()
        (folder / "address.mov").write_bytes(referring(b"url \0\0\0\0" + address + b"\0"))
        (folder / "path.mov").write_bytes(referring(alias(str(pipe), levels=0)))
        (folder / "beside.mov").write_bytes(referring(alias(str(pipe), levels=1)))
        found, _ = decoded(folder)  # a reader of the pipe would wait for a writer and never end
        assert len(found) == 3
        with pytest.raises(BlockingIOError):
            listener.accept()
