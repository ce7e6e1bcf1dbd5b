"""A voice over HTTP: every format and speed as it is made, what is refused, and a tenant of memory like the others."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import openai
import pytest
from openai.types.audio import speech_create_params

from backends.voice.route import SURFACE
from tests.e2e.server import until
from tests.http.conftest import Server

PATH = "/v1/audio/speech"
TEXT = "The quick brown fox jumps over the lazy dog. Please close the window before you leave the house."


@pytest.fixture(scope="module")
def server(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One voice as a file and in a folder, of which the budget holds one at a time, and a model of text."""
    pytest.importorskip("av")
    hibari = pytest.importorskip("hibari")
    folder = tmp_path_factory.mktemp("voice")
    (folder / "voices").mkdir()
    for name in ("heart.onnx", "voices/alloy.onnx", "voices/bf_nova.onnx"):
        shutil.copy(Path(hibari.__file__).parent / "assets/hibari.onnx", folder / name)
    shutil.copy(Path(hibari.__file__).parent / "assets/oov.onnx", folder / "voices")
    settings = {
        "models": {
            "tts-1": {"path": str(folder / "heart.onnx")},
            "tts-2": {"path": str(folder / "voices"), "parallel": 2},
            "canary": {"path": str(canary_path), "context": 256, "parallel": 1},
        },
        "server": {"drain_s": 1},
        "memory": {"device": "cpu", "budget": "600MiB", "prefix_cache": 0},
        "scheduler": {"min_residency_s": 0},
    }
    running = Server(settings, folder / "server.log", ONECARD_TEST_ENGINE="", XDG_CACHE_HOME=str(folder / "cache"))
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def say(server: Server, **fields: Any) -> Any:
    return server.post(PATH, {"model": "tts-1", "voice": "heart", "input": "Hello there.", **fields}, timeout=60)


def seconds(data: bytes, form: str) -> float:
    """Of a file, as a player decodes it."""
    if form == "pcm":
        return len(data) / 2 / 24_000
    import av

    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.audio[0].rate
        return sum(frame.samples for frame in container.decode(audio=0)) / rate


MEDIA: dict[Any, str] = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip


def test_the_sdk_writes_every_format_to_a_file(client: openai.OpenAI, tmp_path: Path) -> None:
    """Given OpenAI's own example, when each format is asked for, then a player finds the same speech in each."""
    lengths = {}
    for form, media in MEDIA.items():
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="heart", input=TEXT, response_format=form
        ) as answer:
            answer.stream_to_file(tmp_path / form)
            assert answer.headers["content-type"] == media
        lengths[form] = seconds((tmp_path / form).read_bytes(), form)
    assert lengths["pcm"] == pytest.approx(6.15, abs=0.5)
    assert lengths == pytest.approx(dict.fromkeys(MEDIA, lengths["pcm"]), abs=0.15)
    with wave.open(str(tmp_path / "wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)


def test_speed(server: Server) -> None:
    lengths = {
        speed: seconds(say(server, input=TEXT, speed=speed, response_format="pcm").body, "pcm")
        for speed in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    for speed, length in lengths.items():
        assert length == pytest.approx(lengths[1.0] / speed, rel=0.15), lengths


def test_it_comes_sentence_by_sentence(server: Server) -> None:
    """Given a text of some sentences, when it is said, then the first sound is there before the last is computed."""
    answer = say(server, input=TEXT, stream_format="sse", response_format="wav")
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert [event["type"] for event in events] == ["speech.audio.delta", "speech.audio.delta", "speech.audio.done"]
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 500
    again = say(server, input=TEXT, stream_format="sse", response_format="wav")
    assert again.body == answer.body


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a voice that is not there": ({"voice": "alloy"}, "voice", "no voice 'alloy'; it has: heart"),
    "no voice": ({"voice": None}, "voice", "expected a string or an object"),
    "a voice that is a number": ({"voice": 7}, "voice", "expected a string or an object"),
    "no text": ({"input": ""}, "input", "empty string"),
    "a long text": ({"input": "a " * 2049}, "input", "maximum length 4096"),
    "marks alone": ({"input": "... --- !!!"}, "input", "no word that can be said"),
    "another script": ({"input": "\u65e5\u672c\u8a9e"}, "input", "it speaks English"),
    "a format": ({"response_format": "m4a"}, "response_format", "'mp3'"),
    "too fast": ({"speed": 4.1}, "speed", "<= 4"),
    "too slow": ({"speed": 0.2}, "speed", ">= 0.25"),
    "no speed": ({"speed": "fast"}, "speed", "decimal"),
    "how it is said": ({"instructions": "Cheerful."}, "instructions", "not supported"),
    "another stream": ({"stream_format": "chunks"}, "stream_format", "'sse'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_refused_with_the_reason(server: Server, case: str) -> None:
    fields, param, sentence = REFUSED[case]
    answer = say(server, **fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert sentence in answer.error["message"]


HARD = {
    "a number without a name": "9" * 100,
    "apostrophes": "'" * 3000 + "a",
    "one word": "aA" * 100,
    "numbers in a row": "-1-2-3" * 10,
    "amounts": "$1,000,000.55 " * 3,
    "links": "[a](" * 20,
    "halves of characters": "e" + "\u0302" * 3000,
    "pictures": "\U0001f600 yes " * 10,
}


def test_texts_that_were_made_to_harm_are_said_or_refused(server: Server) -> None:
    for name, text in HARD.items():
        answer = say(server, input=text[:4096], response_format="pcm")
        assert answer.status in (200, 400), (name, answer.body)
    assert say(server).status == 200
    assert 'onecard_worker_crashes_total{model_name="tts-1"} 0.0' in server.get("/metrics").body.decode()


def test_every_published_field_is_known() -> None:
    assert {*get_type_hints(speech_create_params.SpeechCreateParams)} <= {*SURFACE.fields}


def test_voices_are_listed_as_clients_look_for_them(server: Server) -> None:
    found = server.get("/v1/audio/voices").json()["voices"]
    assert [(one["id"], one["model"]) for one in found] == [
        ("heart", "tts-1"),
        ("alloy", "tts-2"),
        ("bf_nova", "tts-2"),
    ]
    assert server.get("/v1/audio/models").json() == {"models": [{"id": "tts-1"}, {"id": "tts-2"}]}
    assert say(server, model="tts-2", voice={"id": "alloy"}).status == 200
    british = say(server, model="tts-2", voice="bf_nova", input="tomato", response_format="pcm").body
    assert british != say(server, model="tts-2", voice="alloy", input="tomato", response_format="pcm").body


def test_it_is_a_tenant_like_the_others(server: Server) -> None:
    """Given room for one of them, when another is asked for, then the first leaves; and it tells what it is."""
    assert say(server).status == 200
    listed = {one["id"]: one for one in server.get("/v1/models").json()["data"]}
    assert listed["tts-1"]["capabilities"] == ["speech"]
    shown = server.model("tts-1")
    assert (shown["state"], shown["facts"]) == ("ready", {"voices": "heart"})
    capacity = server.get("/v1/capacity?model=tts-1").json()
    assert (capacity["gives"], capacity["fits"], capacity["plan"]["parallel"]) == ("speech", True, 4)
    text = server.get("/metrics").body.decode()
    assert float(re.search(r"onecard_speech_seconds_total\{.*tts-1.*\} ([\d.]+)", text)[1]) > 1  # type: ignore[index]
    predicted = sum(
        float(one) for one in re.findall(r'predicted_bytes\{memory="host",model_name="tts-1".*\} (.+)', text)
    )
    measured = float(re.search(r'measured_bytes\{memory="host",model_name="tts-1"\} (.+)', text)[1])  # type: ignore[index]
    assert 0.7 * predicted < measured < 1.2 * predicted
    chat = server.post("/v1/completions", {"model": "tts-1", "prompt": "a"})
    assert (chat.status, "says texts" in chat.error["message"]) == (400, True)
    assert "has no voice" in say(server, model="canary").error["message"]
    assert say(server, model="tts-2", voice="alloy").status == 200
    assert server.model("tts-1")["state"] == "unloaded"


def test_open_webui_and_wyoming_ask_as_they_do(server: Server) -> None:
    """Given what Open WebUI posts, and what a Wyoming bridge asks the SDK for, then both get a file that plays."""
    body = {"input": "Hello there.", "voice": "heart", "model": "tts-1"}
    answer = server.post(PATH, body, headers={"authorization": "Bearer none", "accept": "*/*"}, timeout=60)
    assert (answer.status, answer.headers["content-type"]) == (200, "audio/mpeg")
    assert seconds(answer.body, "mp3") > 0.5

    async def bridge() -> int:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            asked = client.audio.speech.with_streaming_response.create(
                model="tts-1", voice="heart", input="Hello there.", response_format="pcm", speed=1.0
            )
            async with asked as response:
                return sum([len(chunk) async for chunk in response.iter_bytes(chunk_size=2048)])

    assert asyncio.run(bridge()) > 24_000


def test_texts_are_said_in_turn(server: Server) -> None:
    """Given a long text under way, when a short one comes, then it is said before the long one is."""
    assert say(server).status == 200
    ends: list[str] = []

    def long() -> None:
        assert say(server, input=f"{TEXT} " * 15, response_format="pcm").status == 200
        ends.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    until(lambda: server.model("tts-1")["busy"] == 1, 20)
    assert say(server).status == 200
    ends.append("short")
    thread.join(60)
    assert ends == ["short", "long"]


def test_hanging_up_ends_the_work(server: Server) -> None:
    body = json.dumps({"model": "tts-1", "voice": "heart", "input": f"{TEXT} " * 40}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.model("tts-1")["busy"] == 1, 20)
    server.wait_idle(10)
    assert 'finished_reason="abort"' in server.get("/metrics").body.decode()
