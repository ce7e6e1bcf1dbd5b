"""What Open WebUI and Home Assistant send, byte for byte as their HTTP libraries write it, answered as they read it."""

from __future__ import annotations

import asyncio
import io
import re
from typing import Any

import openai
import pytest

from tests.http.conftest import Server
from tests.speech.sound import SENTENCES, Samples, encoded, wav

PATH = "/v1/audio/transcriptions"
SAID = " ".join(SENTENCES)


def sent(server: Server, boundary: str, *parts: tuple[str, bytes], **headers: str) -> Any:
    """A form whose parts have exactly these headers."""
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    told = {"content-type": f"multipart/form-data; boundary={boundary}", **headers}
    return server.post(PATH, body + f"--{boundary}--\r\n".encode(), headers=told, timeout=120)


def test_open_webui(server: Server, said: Samples) -> None:
    """Its server posts with `requests`: the fields before the file, and no type on the file."""
    answer = sent(
        server,
        "0123456789abcdef0123456789abcdef",
        ('Content-Disposition: form-data; name="model"', b"whisper-1"),
        ('Content-Disposition: form-data; name="language"', b"en"),
        (
            'Content-Disposition: form-data; name="file"; filename="5f0c3a52-7a2f-4a55-9f37-0a1b2c3d4e5f.mp3"',
            encoded(said, "mp3", "libmp3lame"),
        ),
        authorization="Bearer none",
        accept="*/*",
    )
    assert answer.status == 200, answer.body
    assert answer.json()["text"] == SAID


def test_open_webui_in_a_browser(server: Server, said: Samples) -> None:
    """What its microphone records: webm without a length, with the codec in the type."""
    answer = sent(
        server,
        "----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ('Content-Disposition: form-data; name="model"', b"whisper-1"),
        (
            'Content-Disposition: form-data; name="file"; filename="recording.webm"\r\n'
            "Content-Type: audio/webm;codecs=opus",
            encoded(said, "webm", "libopus"),
        ),
    )
    assert answer.status == 200, answer.body
    assert answer.json()["text"] == SAID


def test_home_assistant_by_aiohttp(server: Server, said: Samples) -> None:
    """An integration that posts with aiohttp: types on the fields, a temperature of 0, and a short prompt."""
    field = 'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="%s"'
    answer = sent(
        server,
        "c0ffee00c0ffee00c0ffee00c0ffee00",
        (
            'Content-Type: audio/wav\r\nContent-Disposition: form-data; name="file"; filename="audio.wav"',
            wav(said),
        ),
        (field % "model", b"whisper-1"),
        (field % "language", b"en"),
        (field % "prompt", b"Kitchen, living room."),
        (field % "temperature", b"0.0"),
        (field % "response_format", b"json"),
    )
    assert answer.status == 200, answer.body
    assert re.sub(r"\W", "", answer.json()["text"].lower()) == re.sub(r"\W", "", SAID.lower())


@pytest.mark.parametrize("streamed", [False, True])
def test_wyoming_by_the_sdk(server: Server, said: Samples, streamed: bool) -> None:
    """A bridge of the Wyoming protocol: the asynchronous SDK, a nameless buffer, streamed and whole."""

    async def asked() -> str:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            file = io.BytesIO(wav(said))
            file.name = "recording.wav"
            answer: Any = await client.audio.transcriptions.create(
                file=file, model="whisper-1", language="en", response_format="json", temperature=0.0, stream=streamed
            )
            if not streamed:
                return answer.text
            return "".join([event.delta async for event in answer if event.type == "transcript.text.delta"])

    assert asyncio.run(asked()) == SAID
