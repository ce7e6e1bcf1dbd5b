"""Stop strings on every surface, streamed and whole: about the answer alone where reasoning stands before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.server import KEY, Server, serving
from tests.models import replay

pytestmark = pytest.mark.engine

SAID = "I add.\n</think>\n\nyes add</think> no"
MODELS = {
    "thinks": replay.Said(marks="<think> </think>", prompt="Q:<think>\n", text=SAID),
    "talks": replay.Said(marks="", prompt="Q:", text=SAID),
}
USER: Any = [{"role": "user", "content": "x"}]
STOPS = [
    (["add"], "yes ", "add"),
    (["</think>"], "yes add", "</think>"),
    (["I", "dd.", "\n", "yes add</think> no!"], "yes add</think> no", None),
    (["\n\nyes"], "yes add</think> no", None),
    ([*(f"stop {i}" for i in range(63)), "o"], "yes add</think> n", "o"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("replayed")
    paths = {name: replay.write(folder / f"{name}.gguf", said) for name, said in MODELS.items()}
    with serving(folder, models=paths, flags=("--context", str(replay.CONTEXT), "--parallel", "1")) as running:
        yield running


def chat(client: openai.OpenAI, stop: list[str]) -> list[tuple[str, str]]:
    ask: Any = {"model": "thinks", "messages": USER, "temperature": 0, "stop": stop}
    whole: Any = client.chat.completions.create(**ask).choices[0].message
    deltas: list[Any] = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True)]
    streamed = [
        "".join(getattr(delta, name, None) or "" for delta in deltas) for name in ("reasoning_content", "content")
    ]
    return [(whole.reasoning_content, whole.content), (streamed[0], streamed[1])]


def response(client: openai.OpenAI, stop: list[str]) -> list[tuple[str, str]]:
    ask: Any = {"model": "thinks", "input": "x", "temperature": 0, "extra_body": {"stop": stop}}
    with client.responses.stream(**ask) as stream:
        streamed: Any = stream.until_done().get_final_response()
    whole: Any = client.responses.create(**ask)
    return [(found.output[0].content[0].text, found.output_text) for found in (whole, streamed)]


@pytest.mark.parametrize(("stop", "content", "which"), STOPS, ids=range(len(STOPS)))
def test_they_look_at_the_answer_alone(server: Server, stop: list[str], content: str, which: str | None) -> None:
    client = server.client()
    claude = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)
    ask: Any = {"model": "thinks", "messages": USER, "max_tokens": 99, "stop_sequences": stop}
    ask |= {"thinking": {"type": "enabled", "budget_tokens": 90}, "extra_body": {"temperature": 0}}

    assert chat(client, stop) + response(client, stop) == [("I add.", content)] * 4
    with claude.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    for message in (claude.messages.create(**ask), streamed):
        found: Any = message.content
        assert (found[0].thinking, found[1].text) == ("I add.", content)
        assert message.stop_sequence == which
        assert message.stop_reason == ("stop_sequence" if which else "end_turn")


def test_a_raw_text_has_no_reasoning(server: Server) -> None:
    ask: Any = {"model": "talks", "prompt": "Q:", "max_tokens": 99, "temperature": 0, "stop": ["add"]}
    # Its strict types forbid `finish_reason: null` in a streamed text completion, which OpenAI itself sends.
    client = server.client(_strict_response_validation=False)
    whole = client.completions.create(**ask).choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True))
    assert whole == streamed == "I "
