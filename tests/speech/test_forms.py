"""Forms that were made to harm, on the routes that hear: refused by name before anything is loaded or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.echo.test_echo import form
from tests.http.conftest import Server
from tests.speech.sound import noise, silence, video, wav
from tests.speech.test_hostile import decoded

PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")
MODEL = ('name="model"', b"whisper-1", "")
SOUND = wav(silence(0.3))
HEAD = 'name="file"; filename="a.wav"'
FILE = (HEAD, SOUND, "Content-Type: audio/wav\r\n")
Part = tuple[str, bytes, str]

BROKEN: dict[str, tuple[list[Part], dict[str, Any], int, str | None]] = {
    "no file": ([MODEL], {}, 400, "file"),
    "two files": ([MODEL, FILE, FILE], {}, 400, "file"),
    "a text instead of a file": ([MODEL, ('name="file"', b"a.wav", "")], {}, 400, "file"),
    "a file in another field": ([MODEL, FILE, ('name="prompt"; filename="a"', b"x", "")], {}, 400, "prompt"),
    "an empty file": ([MODEL, (HEAD, b"", "")], {}, 400, "file"),
    "a type that is no sound": ([MODEL, (HEAD, SOUND, "Content-Type: text/html\r\n")], {}, 400, "file"),
    "a model twice": ([MODEL, MODEL, FILE], {}, 400, "model"),
    "no model of that name": ([('name="model"', b"../../etc", ""), FILE], {}, 404, None),
    "a long prompt": ([MODEL, ('name="prompt"', b"a" * 200_000, ""), FILE], {}, 400, "prompt"),
    "fields without end": ([MODEL, ('name="prompt"', b"a" * 2**20, ""), FILE], {}, 413, None),
    "many fields": ([('name="model"', b"a", "")] * 70, {}, 400, None),
    "a number that is none": ([MODEL, ('name="temperature"', b"NaN", ""), FILE], {}, 400, "temperature"),
    "an end that is missing": ([MODEL, FILE], {"end": b""}, 400, None),
    "another boundary": ([MODEL, FILE], {"boundary": "other"}, 400, None),
    "a boundary inside the sound": ([MODEL, (HEAD, SOUND + b"\r\n--a-boundary\r\n", "")], {}, 400, None),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", BROKEN)
def test_forms_that_are_broken_are_refused_by_name(server: Server, case: str, path: str) -> None:
    parts, how, status, param = BROKEN[case]
    headers = {"content-type": "multipart/form-data; boundary=a-boundary"}
    answer = server.post(path, form(*parts, **how), headers=headers)
    assert (answer.status, answer.error["param"] if param else None) == (status, param), answer.body


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
@pytest.mark.parametrize("path", PATHS)
def test_pages_of_others_are_refused_before_the_body(server: Server, path: str, headers: dict[str, str]) -> None:
    kind = "multipart/form-data; boundary=x"
    said = {"host": "localhost", **headers, "content-type": kind, "content-length": "100000"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    with server.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 403"


def test_films(tmp_path: Path) -> None:
    """Given films, when their sound is asked for, then it is heard where they have some, whatever they are called."""
    (tmp_path / "a.mp3").write_bytes(video(noise(1.0)))
    (tmp_path / "b.mp4").write_bytes(video(None))
    assert decoded(tmp_path)[0] == {"a.mp3": "heard", "b.mp4": "unsupported_media"}
