"""Ollama's own client asks a real model: conversations, streams, tools, formats, thinking, prompts as they stand."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest

from tests.e2e.server import Server
from tests.models import canary_p
from tests.present import present

pytestmark = pytest.mark.engine

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
SURE: dict[str, Any] = {"temperature": 0}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def ours(server: Server) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=60)


def get_weather(city: str) -> str:
    """
    Get the weather of a city

    Args:
      city: Name of the city
    """
    return json.dumps({"condition": "sunny", "temperature": 21, "city": city})


def test_a_conversation_is_answered_whole_and_in_lines(ours: ollama.Client) -> None:
    whole = ours.chat("demo", messages=FRANCE, options=SURE)
    lines = list(ours.chat("demo", messages=FRANCE, options=SURE, stream=True))

    assert whole.message.content == "".join(line.message.content or "" for line in lines) == PARIS
    assert (whole.eval_count, whole.prompt_eval_count) == (lines[-1].eval_count, lines[-1].prompt_eval_count)
    spent = [present(whole.load_duration), present(whole.prompt_eval_duration), present(whole.eval_duration)]
    assert 0 < sum(spent) <= present(whole.total_duration)
    assert ours.generate("demo", FRANCE[0]["content"], options=SURE).response == PARIS


def test_a_python_function_is_called_and_its_result_used(ours: ollama.Client) -> None:
    """The README's example of tools."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = ours.chat("demo", messages=messages, tools=[get_weather], options=SURE)
    (call,) = present(answer.message.tool_calls)
    assert (call.function.name, dict(call.function.arguments)) == ("get_weather", {"city": "Paris"})

    result = get_weather(**call.function.arguments)
    messages += [answer.message, {"role": "tool", "content": result, "tool_name": call.function.name}]
    said = ours.chat("demo", messages=messages, tools=[get_weather], options=SURE).message.content
    assert "sunny" in present(said)


def test_a_schema_and_thinking_are_kept(ours: ollama.Client) -> None:
    formed = ours.chat("demo", messages=FRANCE, format=CITY, options=SURE).message.content
    assert json.loads(present(formed)).keys() == {"city"}
    thought = ours.chat("demo", messages=FRANCE, think=True, options=SURE).message
    assert (thought.content, "France" in present(thought.thinking)) == (PARIS, True)
    assert ours.chat("demo", messages=FRANCE, think=False, options=SURE).message.thinking is None


def test_a_raw_prompt_goes_on_as_long_as_it_is_told_to(ours: ollama.Client) -> None:
    raw = ours.generate("canary", "a", raw=True, options={**SURE, "num_predict": 12})
    assert (raw.response, raw.done_reason) == (canary_p.expected_text("a", 12), "length")
    with pytest.raises(ollama.ResponseError) as caught:
        ours.generate("canary", "a" * 3000, raw=True, options={"num_ctx": 4096})
    assert caught.value.status_code == 400
    assert "maximum context length is 2048 tokens" in caught.value.error
