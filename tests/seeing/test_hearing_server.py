"""Sounds over HTTP: the parts that OpenAI's clients send, what is refused and by which name, and what it costs."""

from __future__ import annotations

import base64
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from backends.gguf.header import read
from server.settings.builtin import built_in_path
from tests.e2e.server import KEY, Server, serving
from tests.models import hearing
from tests.models.hearing import tone
from tests.speech.sound import encoded, silence
from tests.speech.test_hostile import mutants

pytestmark = pytest.mark.engine
TONE = tone(440)
ENVIRONMENT = os.environ | {"ONECARD_API_KEY": KEY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo with ears of random weights, and without."""
    folder = tmp_path_factory.mktemp("hearing")
    model = folder / "hearer.gguf"
    demo = built_in_path("demo")
    assert demo is not None
    shutil.copy(demo, model)
    hearing.projector(folder / "mmproj-hearer.gguf", "ultravox", width=read(model).number("embedding_length"))
    with serving(folder, models={"hearer": model, "deaf": "demo"}, flags=("--parallel", "2")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def heard(data: bytes, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def asked(data: bytes, kind: str = "wav") -> list[Any]:
    return [{"role": "user", "content": [heard(data, kind), {"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def mp3() -> bytes:
    return encoded(np.frombuffer(TONE[44:], "<i2"), "mp3", "libmp3lame")


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_a_sound_in_a_chat_is_answered(client: openai.OpenAI, kind: str, mp3: bytes) -> None:
    data = {"wav": TONE, "mp3": mp3}[kind]
    answer = client.chat.completions.create(model="hearer", messages=asked(data, kind), max_tokens=8)
    silent = client.chat.completions.create(
        model="hearer", messages=[{"role": "user", "content": "What is it?"}], max_tokens=8
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert silent.usage is not None
    assert answer.usage.prompt_tokens - silent.usage.prompt_tokens >= hearing.ROWS["ultravox"]


def test_a_sound_in_the_next_turn_is_not_computed_again(server: Server, client: openai.OpenAI) -> None:
    sound = tone(660)
    first = client.chat.completions.create(model="hearer", messages=asked(sound), max_tokens=8)
    before = server.metric("onecard_images_encoded_total", model_name="hearer")
    said = {"role": "assistant", "content": first.choices[0].message.content}
    more = [*asked(sound), said, {"role": "user", "content": "And now?"}]
    second = client.chat.completions.create(model="hearer", messages=more, max_tokens=8)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens - (second.usage.prompt_tokens_details.cached_tokens or 0) < 64
    assert server.metric("onecard_images_encoded_total", model_name="hearer") == before


def test_responses_take_a_sound_too(client: openai.OpenAI) -> None:
    parts: Any = [heard(TONE), {"type": "input_text", "text": "What is it?"}]
    response = client.responses.create(model="hearer", input=[{"role": "user", "content": parts}], max_output_tokens=8)
    assert response.output_text


def test_models_say_who_hears(server: Server) -> None:
    models = {model["id"]: model["capabilities"] for model in server.get("/v1/models")["data"]}
    assert "hearing" in models["hearer"]
    assert "hearing" not in models["deaf"]
    assert server.get("/props?model=hearer")["modalities"] == {"vision": False, "audio": True}
    assert server.get("/props?model=deaf")["modalities"] == {"vision": False, "audio": False}


def test_a_sound_for_a_model_without_ears_names_one_that_hears(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'deaf' takes no parts of type audio.*does: hearer"):
        client.chat.completions.create(model="deaf", messages=asked(TONE))


def test_a_sound_of_an_earlier_turn_does_not_end_a_session(client: openai.OpenAI) -> None:
    turns = [*asked(TONE), {"role": "assistant", "content": "A tone."}, {"role": "user", "content": "Say banana."}]
    answer = client.chat.completions.with_raw_response.create(model="deaf", messages=turns, max_tokens=8)
    assert answer.headers["x-onecard-not-shown"] == "1 audio"


def answered(client: openai.OpenAI, data: bytes) -> str:
    """Why a sound was refused; empty where it was heard."""
    try:
        client.chat.completions.create(model="hearer", messages=asked(data), max_tokens=2)
    except openai.BadRequestError as error:
        return error.message
    return ""


def test_hostile_sounds_are_answered_and_harm_no_other(server: Server, client: openai.OpenAI) -> None:
    refused = {
        "text": b"a sound, really",
        "a header alone": TONE[:44],
        "minutes in little": encoded(silence(130), "webm", "libopus"),
        "a blink": tone(440, seconds=0.01),
    }
    said = {name: answered(client, data) for name, data in refused.items()}
    assert all("audio 1 of the prompt" in one for one in said.values()), said
    mutated = [answered(client, data) for data in itertools.islice(mutants(random.Random(7)), 10)]
    assert set(mutated) > {""}, "some are heard, and some are not"
    assert all("audio 1 of the prompt" in one for one in mutated if one)
    assert client.chat.completions.create(model="hearer", messages=asked(TONE), max_tokens=2).usage is not None
    assert server.metric("onecard_worker_crashes_total", model_name="hearer") == 0


def test_what_it_takes_is_what_was_told(server: Server, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="hearer", messages=asked(TONE), max_tokens=2)
    [model] = [one for one in server.get("/v1/status")["models"] if one["name"] == "hearer"]
    assert model["measured_bytes"] == pytest.approx(model["predicted_bytes"], rel=0.06)


def test_run_sends_a_sound(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "tone.wav"
    file.write_bytes(TONE)

    def run(model: str, *files: Path) -> subprocess.CompletedProcess[str]:
        flags = [flag for path in files for flag in ("--audio", str(path))]
        command = [sys.executable, "-m", "server.cli", "run", model, "What is it?", *flags, "--url", server.url]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"ONECARD_API_KEY": KEY}
        )

    assert run("hearer", file).stdout.strip()
    assert "is no sound. hint: WAV" in run("hearer", Path(__file__)).stderr
