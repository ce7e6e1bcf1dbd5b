"""A call that is cut by `max_tokens`, on all surfaces: as far as it came, never raw text. No stop string cuts one."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import jiter
import openai
import pytest

from tests.e2e.server import KEY, Server
from tests.e2e.test_answers import PARIS, TOOLS

pytestmark = pytest.mark.engine

ARGUMENTS = '{"city": "Paris"}'
N_WHOLE = 40
"""More tokens than the whole call has."""
CUTS = {"gguf": range(1, N_WHOLE + 1), "bnb": range(1, N_WHOLE + 1, 3)}
"""What becomes of the text is the same code for both; the slower one is cut at every third token."""


def told(text: str | None, calls: list[tuple[str, str]], end: str) -> tuple[str, list[tuple[str, str]], str]:
    return text or "", calls, end


def chat(client: openai.OpenAI, **fields: Any) -> tuple[str, list[tuple[str, str]], str]:
    answer = client.chat.completions.create(model="demo", messages=PARIS, tools=TOOLS, temperature=0, **fields)
    (choice,) = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return told(choice.message.content, calls, choice.finish_reason)


def streamed_chat(client: openai.OpenAI, **fields: Any) -> tuple[str, list[tuple[str, str]], str]:
    stream = client.chat.completions.create(
        model="demo", messages=PARIS, tools=TOOLS, temperature=0, stream=True, **fields
    )
    text, end = "", ""
    calls: dict[int, tuple[str, str]] = {}
    for chunk in stream:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            name, arguments = calls.get(call.index, (call.function.name, ""))
            calls[call.index] = (name, arguments + call.function.arguments)
        end = choice.finish_reason or end
    return told(text, list(calls.values()), end)


def test_a_chat_tells_of_a_cut_call_what_came_of_it(client: openai.OpenAI, backend: str) -> None:
    seen = []
    for n in CUTS[backend]:
        text, calls, end = chat(client, max_tokens=n)
        assert (text, calls, end) == streamed_chat(client, max_tokens=n)
        assert text == ""
        assert all(name == "get_weather" and ARGUMENTS.startswith(arguments) for name, arguments in calls)
        assert end == ("tool_calls" if calls == [("get_weather", ARGUMENTS)] and end != "length" else "length")
        seen += [calls[0][1] if calls else None]
    assert seen == sorted(seen, key=lambda arguments: -1 if arguments is None else len(arguments))
    assert {None, "", ARGUMENTS} < set(seen), "cut before its name, before its arguments, and not at all"
    assert end == "tool_calls"


@pytest.mark.parametrize("stop", ["aris", "argum", "weather", "{", "<tool_call>", "</tool_call>"])
def test_a_stop_string_is_about_the_answer_and_cuts_no_call(client: openai.OpenAI, stop: str) -> None:
    whole = ("", [("get_weather", ARGUMENTS)], "tool_calls")
    assert chat(client, stop=[stop]) == streamed_chat(client, stop=[stop]) == whole


def response_tools() -> list[Any]:
    return [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


@pytest.mark.parametrize("n", [16, 18, 20, N_WHOLE])
def test_a_response_tells_of_a_cut_call_what_came_of_it(client: openai.OpenAI, n: int) -> None:
    ask: Any = {"model": "demo", "input": PARIS, "tools": response_tools(), "temperature": 0, "max_output_tokens": n}
    _, calls, end = chat(client, max_tokens=n)

    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:
        events = list(stream)
    streamed: Any = events[-1].response  # type: ignore[union-attr]

    status = "incomplete" if end == "length" else "completed"
    found = [(item.name, item.arguments, item.status) for item in whole.output if item.type == "function_call"]
    assert found == [(name, arguments, status) for name, arguments in calls]
    assert [(i.name, i.arguments, i.status) for i in streamed.output if i.type == "function_call"] == found
    assert (whole.output_text, streamed.output_text) == ("", "")
    assert (whole.status, streamed.status) == (status, status)
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(parts) == (calls[0][1] if calls else "")


@pytest.mark.parametrize("n", [2, 8, 12, 14, 16, 18, 20, N_WHOLE])
def test_a_message_tells_of_a_cut_call_what_came_of_it(server: Server, client: openai.OpenAI, n: int) -> None:
    claude = anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, _strict_response_validation=True)
    tools = [
        {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} | description(tool)
        for tool in TOOLS
    ]
    ask: Any = {"model": "demo", "messages": PARIS, "tools": tools, "max_tokens": n, "extra_body": {"temperature": 0}}
    _, calls, end = chat(client, max_tokens=n)

    whole = claude.messages.create(**ask)
    with claude.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()

    expected = [(name, jiter.from_json(text.encode() or b"{}", partial_mode=True)) for name, text in calls]
    assert [(block.name, block.input) for block in whole.content if block.type == "tool_use"] == expected
    assert [(block.name, block.input) for block in streamed.content if block.type == "tool_use"] == expected
    assert [block.type for block in whole.content] == ["tool_use"] * len(calls)
    reason = "max_tokens" if end == "length" else "tool_use"
    assert (whole.stop_reason, streamed.stop_reason) == (reason, reason)


def description(tool: Any) -> dict[str, str]:
    return {"description": tool["function"]["description"]}


def test_a_conversation_goes_on_behind_a_call_that_was_cut(client: openai.OpenAI) -> None:
    """Half a call cannot be answered, so the next turn is not asked to."""
    ask: Any = {"model": "demo", "tools": response_tools(), "temperature": 0}
    first: Any = client.responses.create(input=PARIS, max_output_tokens=18, **ask)
    assert [item.status for item in first.output] == ["incomplete"]
    assert json.loads(first.to_json())["incomplete_details"] == {"reason": "max_output_tokens"}

    second = client.responses.create(input="What is the capital of France?", previous_response_id=first.id, **ask)

    assert "Paris" in second.output_text
