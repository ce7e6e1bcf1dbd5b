"""Words about calls, calls, and words behind them, as clients of all surfaces read them, streamed and whole."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.types import TextBlock, ToolUseBlock

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call>'
UNKNOWN = '<tool_call>{"name": "whether", "arguments": {"city": "Rom"}}</tool_call>'
SAID = f"A <tool_call> is `<tool_call>`, {UNKNOWN} is none."
CALLED = [("weather", '{"city": "Rom"}')]
CASES = [
    (SAID, SAID, []),
    (f"{SAID} {CALL} <b>so</b>", f"{SAID}<b>so</b>", CALLED),
    (f"{CALL}\n</think> {UNKNOWN}", f"</think> {UNKNOWN}", CALLED),
    (f"{CALL} and {CALL}", "and", CALLED * 2),
]
EACH = pytest.mark.parametrize(("text", "content", "calls"), CASES, ids=range(len(CASES)))


@pytest.mark.parametrize("n", [1, 2])
@EACH
def test_chat(client, text: str, content: str, calls: list[tuple[str, str]], n: int) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    ask: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": f"!say {text}"}], "n": n}
    whole = client.chat.completions.create(tools=tools, **ask)
    said = [""] * n
    made: list[dict[int, tuple[str, str]]] = [{} for _ in range(n)]
    for chunk in client.chat.completions.create(tools=tools, stream=True, **ask):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                name, arguments = made[choice.index].get(call.index, (call.function.name, ""))
                made[choice.index][call.index] = name, arguments + call.function.arguments
    for choice in whole.choices:
        found = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        assert (choice.message.content or "", found) == (content, calls)
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        assert (said[choice.index], list(made[choice.index].values())) == (content, calls)
    for without in ({}, {"tools": tools, "tool_choice": "none"}):
        for choice in client.chat.completions.create(**ask, **without).choices:
            assert (choice.message.content, choice.message.tool_calls) == (text, None)


@EACH
def test_responses(client, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
    ask: dict[str, Any] = {"model": "fake", "input": f"!say {text}", "tools": tools}
    with client.responses.stream(**ask) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    for response in (client.responses.create(**ask), final):
        assert response.output_text == content
        assert [(i.name, i.arguments) for i in response.output if i.type == "function_call"] == calls


@EACH
def test_messages(server, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    messages = [{"role": "user", "content": f"!say {text}"}]
    ask: dict[str, Any] = {"model": "fake", "max_tokens": 400, "messages": messages, "tools": tools}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=20) as claude:
        with claude.messages.stream(**ask) as stream:
            streamed = stream.get_final_message()
        for message in (claude.messages.create(**ask), streamed):
            assert "".join(block.text for block in message.content if isinstance(block, TextBlock)) == content
            used = [(block.name, block.input) for block in message.content if isinstance(block, ToolUseBlock)]
            assert used == [(name, {"city": "Rom"}) for name, _ in calls]
            assert message.stop_reason == ("tool_use" if calls else "end_turn")
