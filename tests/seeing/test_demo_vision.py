"""The toy that sees, asked on both backends as its clients ask: its exam, three surfaces, two SDKs, what it costs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from PIL import Image

from demo.evaluate import Case, cases
from demo.vision.pictures import COLOURS, Look, exam
from server.cli.chat.loop import Chat, Start
from server.cli.chat.options import Options
from server.cli.client import client_for
from server.settings.config import Settings
from tests.e2e.server import KEY, Server, serving
from tests.seeing.hostile import refused

pytestmark = pytest.mark.engine
LOOKS = list(exam())


@pytest.fixture(scope="module")
def server(vision_model: Path | str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: dict[str, Path | str] = {"seer": vision_model, "blind": "demo"}
    with serving(tmp_path_factory.mktemp("vision"), models=models, flags=("--parallel", "4")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def base64_of(one: Look, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(one.pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def url(one: Look) -> str:
    return f"data:image/png;base64,{base64_of(one)}"


def asked(one: Look) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": url(one)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": one.question}]}]


def test_it_names_colours(client: openai.OpenAI) -> None:
    def is_right(one: Look) -> bool:
        answer = client.chat.completions.create(model="seer", messages=asked(one), temperature=0, max_tokens=24)
        return answer.choices[0].message.content == one.answer

    right: Counter[str] = Counter()
    with ThreadPoolExecutor(4) as at_once:
        for one, is_it in zip(LOOKS, at_once.map(is_right, LOOKS), strict=True):
            right[one.family] += is_it
    assert right["colour"] >= 22, right
    assert right["background"] >= 17, right


def test_responses_and_messages_show_it_the_same(server: Server, client: openai.OpenAI) -> None:
    one = next(look for look in LOOKS if look.family == "background")
    parts: Any = [{"type": "input_image", "image_url": url(one)}, {"type": "input_text", "text": one.question}]
    response = client.responses.create(model="seer", input=[{"role": "user", "content": parts}], temperature=0)
    assert response.output_text == one.answer
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(one)}
    blocks: Any = [{"type": "image", "source": source}, {"type": "text", "text": one.question}]
    messages = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)
    message = messages.messages.create(
        model="seer", max_tokens=24, extra_body={"temperature": 0}, messages=[{"role": "user", "content": blocks}]
    )
    assert message.content[0].type == "text"
    assert message.content[0].text == one.answer


def counted(server: Server) -> dict[str, float]:
    """Images of prompts, and those of them that were encoded."""
    names = ("images_total", "images_encoded_total", "image_tokens_total", "image_encode_seconds_count")
    return {name: server.metric(f"onecard_{name}", model_name="seer") for name in names}


def test_an_image_that_was_seen_is_not_computed_again(server: Server, client: openai.OpenAI) -> None:
    one = replace(LOOKS[1], pixels=np.ascontiguousarray(LOOKS[1].pixels[::-1]))  # no other test shows it
    before = counted(server)
    first = client.chat.completions.create(model="seer", messages=asked(one), temperature=0)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    more = [*asked(one), said, {"role": "user", "content": "What colour is the background?"}]
    second = client.chat.completions.create(model="seer", messages=more, temperature=0)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert second.usage.prompt_tokens - cached < 64
    assert cached > 36
    more_now = {name: value - before[name] for name, value in counted(server).items()}
    assert more_now == {
        "images_total": 2,
        "images_encoded_total": 1,
        "image_tokens_total": 72,
        "image_encode_seconds_count": 1,
    }


def test_it_still_knows_what_the_demo_knows(client: openai.OpenAI) -> None:
    exam = [case for case in cases(n_per_family=3) if not case.tools and not case.enable_thinking]

    def is_right(case: Case) -> bool:
        asked: Any = case.messages
        answer = client.chat.completions.create(model="seer", messages=asked, temperature=0, max_tokens=40)
        return answer.choices[0].message.content == case.expected

    with ThreadPoolExecutor(4) as at_once:
        right = sum(at_once.map(is_right, exam))
    assert len(exam) > 20
    assert right >= 0.95 * len(exam)


def test_a_path_in_a_chat_is_shown_to_a_model_that_sees(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = next(look for look in LOOKS if look.family == "background")
    file = tmp_path / "my look.png"
    Image.fromarray(one.pixels).save(file)

    def chat(model: str, line: str) -> str:
        lines = iter([line])

        class Typed:
            reads_keys = False

            def ask(self) -> str:
                return next(lines, "/bye")

            def redraw(self) -> None:
                pass

        Chat(client_for(server.url, Settings()), model, Start(options=greedy)).run(Typed())  # type: ignore[arg-type]
        told = capsys.readouterr()
        return told.out + told.err

    greedy = Options()
    greedy.set("temperature", "0")
    said = chat("seer", f"'{file}' {one.question}")
    assert one.answer in said
    assert "my look.png: image/png" in said
    assert "image/png" not in chat("blind", f"'{file}' what is it?")


def test_models_say_who_sees(server: Server) -> None:
    models = {model["id"]: model["capabilities"] for model in server.get("/v1/models")["data"]}
    assert "vision" in models["seer"]
    assert "vision" not in models["blind"]
    assert server.get("/props?model=seer")["modalities"]["vision"] is True
    assert server.get("/props?model=blind")["modalities"]["vision"] is False


def test_an_image_for_a_model_without_eyes_names_one_that_sees(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="name a model that does: seer"):
        client.chat.completions.create(model="blind", messages=asked(LOOKS[0]))


def test_a_tool_that_shows_an_image_does_not_end_a_session(client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": url(LOOKS[0])}}
    call = {"id": "c", "type": "function", "function": {"name": "view", "arguments": "{}"}}
    messages: Any = [
        {"role": "user", "content": "Say banana."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [image]},
    ]
    answer = client.chat.completions.with_raw_response.create(model="blind", messages=messages, max_tokens=8)
    assert answer.headers["x-onecard-not-shown"] == "1 image"
    assert answer.parse().choices[0].message.content


def test_what_is_no_image_is_a_400_that_names_it(server: Server, client: openai.OpenAI) -> None:
    crashes = server.metric("onecard_worker_crashes_total", model_name="seer")
    for name, data in refused():
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}
        turn: Any = {"role": "user", "content": [image, {"type": "text", "text": name}]}
        with pytest.raises(openai.BadRequestError, match=r"image 1 of the prompt \(\d+ bytes\)"):
            client.chat.completions.create(model="seer", messages=[turn], max_tokens=2)
    assert client.chat.completions.create(model="seer", messages=asked(LOOKS[0]), max_tokens=2).usage is not None
    assert server.metric("onecard_worker_crashes_total", model_name="seer") == crashes


def test_what_it_takes_is_what_was_told(server: Server, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="seer", messages=asked(LOOKS[0]), max_tokens=4)
    [model] = [one for one in server.get("/v1/status")["models"] if one["name"] == "seer"]
    assert model["parts"]["projector"] > 1_000_000
    assert model["measured_bytes"] == pytest.approx(model["predicted_bytes"], rel=0.06)


def test_answers_name_colours_there_are() -> None:
    assert all(any(colour in one.answer for colour in COLOURS) for one in LOOKS)
