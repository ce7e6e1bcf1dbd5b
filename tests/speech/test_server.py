"""Recordings over HTTP, with real weights: every format, what is refused, and a tenant of memory like the others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import until
from tests.echo.test_echo import cli, form
from tests.http.conftest import Answer, Server
from tests.speech.sound import SENTENCES, Samples, encoded, noise, silence, wav
from tests.surfaces.test_published_schemas import problems

PATH = "/v1/audio/transcriptions"
BOUNDARY = "a-boundary"


def post(server: Server, data: bytes, path: str = PATH, **fields: str | list[str]) -> Answer:
    """A form with fields before the file, as the SDK sends it."""
    said = {"model": "whisper-1", **fields}
    parts = [
        (f'name="{name}"', value.encode(), "")
        for name, values in said.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    body = form(*parts, ('name="file"; filename="a.wav"', data, "Content-Type: audio/wav\r\n"))
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return server.post(path, body, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def recording(said: Samples) -> bytes:
    return wav(said)


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120, _strict_response_validation=True
    ) as client:
        yield client


def test_the_sdk_reads_every_time_of_a_word(client: openai.OpenAI, recording: bytes) -> None:
    """Given three sentences, when words are asked for too, then all is there, in order, and as it was said."""
    answer = client.audio.transcriptions.create(
        model="whisper-1",
        file=("a.wav", recording),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
    )
    assert answer.text == " ".join(SENTENCES)
    assert answer.language == "english"
    assert answer.segments is not None
    assert answer.words is not None
    assert [word.word for word in answer.words] == answer.text.split()
    times = [at for word in answer.words for at in (word.start, word.end)]
    assert times == sorted(times)
    assert answer.segments[0].start <= times[0]
    assert times[-1] <= answer.segments[-1].end <= answer.duration
    assert problems(json.loads(answer.to_json()), "CreateTranscriptionResponseVerboseJson") == []
    for segment in answer.segments:
        assert segment.start < segment.end
        assert segment.compression_ratio > 0 > segment.avg_logprob
        assert segment.tokens


def test_text_comes_as_it_is_heard(client: openai.OpenAI, recording: bytes) -> None:
    stream = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", recording), stream=True)
    events = list(stream)
    assert events[-1].type == "transcript.text.done"
    assert "".join(one.delta for one in events[:-1] if one.type == "transcript.text.delta") == events[-1].text
    assert events[-1].text == " ".join(SENTENCES)
    for event in events:
        name = "TranscriptTextDeltaEvent" if event.type == "transcript.text.delta" else "TranscriptTextDoneEvent"
        assert problems(json.loads(event.to_json()), name) == []


def test_formats(server: Server, said: Samples) -> None:
    """Given the recording as a browser and a telephone send it, then each format has its own body."""
    as_json = post(server, encoded(said, "webm", "libopus"), chunking_strategy="auto")
    assert (as_json.status, problems(as_json.json(), "CreateTranscriptionResponseJson")) == (200, [])
    assert as_json.json()["text"] == " ".join(SENTENCES)
    assert as_json.json()["usage"]["type"] == "duration"
    srt = post(server, encoded(said, "mp3", "libmp3lame"), response_format="srt")
    assert srt.headers["content-type"].startswith("text/plain")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:\d\d,\d{3}\n\w", srt.body.decode()), srt.body


SILENT = {"silence": silence(20), "noise": noise(20), "a breath": silence(0.4)}


@pytest.mark.parametrize("what", SILENT)
def test_silence_says_nothing(server: Server, what: str) -> None:
    answer = post(server, wav(SILENT[what]), response_format="verbose_json")
    assert (answer.status, answer.json()["text"], answer.json()["segments"]) == (200, "", [])


REFUSED: dict[str, tuple[bytes, dict[str, Any], str | None, str]] = {
    "too short": (wav(silence(0.05)), {}, "file", "0.1 s is the shortest"),
    "too long": (wav(silence(70)[::3], rate=8_000), {}, "file", "70 s, and 60 s are the most"),
    "too long, and it does not say so": (b"", {}, "file", "60 s are the most"),
    "no audio": (b"what is in the file" * 100, {}, "file", "no recording that can be read"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", {}, "file", "cannot be transcribed"),
    "a concatenation": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", {}, "file", "cannot be transcribed"),
    "another language": (wav(silence(1)), {"language": "de"}, "language", "English alone"),
    "no language": (wav(silence(1)), {"language": "klingon"}, "language", "English alone"),
    "a format": (wav(silence(1)), {"response_format": "docx"}, "response_format", "'verbose_json'"),
    "who speaks": (wav(silence(1)), {"response_format": "diarized_json"}, "response_format", "'verbose_json'"),
    "hot": (wav(silence(1)), {"temperature": "1.5"}, "temperature", "temperature"),
    "times without verbose": (wav(silence(1)), {"timestamp_granularities[]": "word"}, None, "verbose_json"),
    "a stream of objects": (
        wav(silence(1)),
        {"stream": "true", "response_format": "verbose_json"},
        "stream",
        "verbose_json",
    ),
    "a strategy": (wav(silence(1)), {"chunking_strategy": "never"}, "chunking_strategy", "server_vad"),
    "log-probabilities": (wav(silence(1)), {"include[]": "logprobs"}, "include", "log-probabilities"),
    "keywords": (wav(silence(1)), {"keywords[]": ["a", "b"]}, "keywords", "prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_heard_is_refused_with_the_reason(server: Server, case: str) -> None:
    data, fields, param, sentence = REFUSED[case]
    answer = post(server, data or encoded(silence(65), "webm", "libopus"), **fields)
    assert answer.status == 400, answer.body
    assert sentence in answer.error["message"]
    assert answer.error["param"] == param or param is None


def test_a_model_of_english_translates_nothing(server: Server) -> None:
    answer = post(server, wav(silence(1)), "/v1/audio/translations")
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert "English alone" in answer.error["message"]


def test_it_is_a_tenant_like_the_others(server: Server, recording: bytes) -> None:
    """Given room for one of them, when another is asked for, then the first leaves; and it tells what it is."""
    assert post(server, recording, prompt="Foxes and gardens.").status == 200
    listed = {one["id"]: one for one in server.get("/v1/models").json()["data"]}
    assert "transcription" in listed["whisper-1"]["capabilities"]
    shown = server.model("whisper-1")
    assert shown["state"] == "ready"
    assert shown["facts"] == {"max_audio_s": 60.0, "languages": 1}
    capacity = server.get("/v1/capacity?model=whisper-1").json()
    assert (capacity["gives"], capacity["fits"], capacity["plan"]["parallel"]) == ("transcripts", True, 4)
    text = server.get("/metrics").body.decode()
    heard = re.search(r"onecard_audio_seconds_total\{.*whisper-1.*\} ([\d.]+)", text)
    assert heard is not None
    assert float(heard[1]) > 8
    assert "onecard_audio_real_time_factor_bucket" in text
    chat = server.post("/v1/completions", {"model": "whisper-1", "prompt": "a"})
    assert (chat.status, "transcribes speech" in chat.error["message"]) == (400, True)
    assert post(server, recording, model="canary").status == 400
    other = post(server, wav(silence(1)), model="whisper-2")
    assert (other.status, other.json()["text"]) == (200, "")
    assert server.model("whisper-1")["state"] == "unloaded"


def test_hanging_up_ends_the_work(server: Server, recording: bytes) -> None:
    body = form(('name="model"', b"whisper-1", ""), ('name="file"; filename="a.wav"', recording, ""))
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.model("whisper-1")["busy"] == 1, 60)
    server.wait_idle(10)


def test_the_command_writes_subtitles_as_they_come(server: Server, recording: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(recording)
    told = cli("transcribe", str(tmp_path / "a.wav"), "--srt", "-m", "whisper-1", ONECARD_URL=server.url)
    assert (told.returncode, told.stderr) == (0, "")
    text = " ".join(line for line in told.stdout.splitlines() if line and "-->" not in line and not line.isdigit())
    assert text == " ".join(SENTENCES)
    refused = cli("transcribe", str(tmp_path / "a.wav"), "--language", "de", "-m", "whisper-1", ONECARD_URL=server.url)
    assert (refused.returncode, "English alone" in refused.stderr) == (1, True)
    several = cli("transcribe", str(tmp_path / "a.wav"), ONECARD_URL=server.url)
    assert (several.returncode, "whisper-1, whisper-2" in several.stderr) == (2, True)
