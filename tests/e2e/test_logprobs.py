"""The log-probabilities of a chat's content, as a real model writes it: its tokens, all of them, and no others."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.e2e.server import Server
from tests.e2e.test_answers import CITY, FRANCE, PARIS, TOOLS, form
from tests.models import canary_p

pytestmark = pytest.mark.engine

THINKS: dict[str, Any] = {"messages": FRANCE, "reasoning_effort": "high"}
SPLIT: dict[str, Any] = {"model": "canary", "messages": [{"role": "user", "content": canary_p.SPLIT_TEXT}]}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"messages": FRANCE},
    "thoughts": THINKS,
    "thoughts that are cut": {**THINKS, "max_tokens": 4},
    "thoughts before a schema": {**THINKS, "response_format": form(CITY)},
    "a call": {"messages": PARIS, "tools": TOOLS},
    "a call that is cut": {"messages": PARIS, "tools": TOOLS, "max_tokens": 6},
    "text where calls might come": {"messages": FRANCE, "tools": TOOLS},
    "a stop string at the border of tokens": {"messages": FRANCE, "stop": [" Paris"]},
    "a stop string inside a token": {"messages": FRANCE, "stop": ["ari"]},
    "a stop string over tokens": {"messages": FRANCE, "stop": ["e is P"]},
    "a stop string inside thoughts": {**THINKS, "stop": ["Paris"]},
    "characters of several tokens": {**SPLIT, "max_tokens": 21},
    **{f"a character cut behind {n} tokens": {**SPLIT, "max_tokens": n} for n in range(1, 8)},
    "a stop string of such characters": {**SPLIT, "max_tokens": 50, "stop": ["😀€😀"]},
    "letters of two bytes": {"model": "canary", "messages": [{"role": "user", "content": "a"}], "max_tokens": 300},
    "several choices": {"messages": FRANCE, "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 40},
}


def asked(client: openai.OpenAI, case: dict[str, Any], *, stream: bool = False) -> Any:
    fields = {"model": "demo", "temperature": 0, "logprobs": True, "top_logprobs": 2, "stream": stream, **case}
    return client.chat.completions.create(**fields)


def written(entries: list[Any]) -> bytes:
    return b"".join(bytes(entry.bytes) for entry in entries)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_joined_the_bytes_of_the_tokens_are_the_content(client: openai.OpenAI, case: dict[str, Any]) -> None:
    whole = asked(client, case)
    chunks = [chunk.choices[0] for chunk in asked(client, case, stream=True)]

    for choice in whole.choices:
        content = choice.message.content or ""
        entries = choice.logprobs.content
        streamed = [entry for c in chunks if c.index == choice.index and c.logprobs for entry in c.logprobs.content]
        text = "".join(c.delta.content or "" for c in chunks if c.index == choice.index)

        assert written(entries) == content.encode()
        assert text == content
        assert [(e.token, e.bytes) for e in streamed] == [(e.token, e.bytes) for e in entries]
        assert all(len(entry.top_logprobs) == 2 and entry.bytes for entry in entries)
        assert (content == "") == (entries == [])
    assert all(c.logprobs is None for c in chunks if c.delta.tool_calls or (c.delta.model_extra or {}))


def test_there_is_something_of_each_kind_in_these_cases(client: openai.OpenAI) -> None:
    """Else the equality would be one of nothing."""
    thought = asked(client, CASES["thoughts"]).choices[0]
    called = asked(client, CASES["a call"]).choices[0]
    split = asked(client, CASES["characters of several tokens"]).choices[0]
    inside = asked(client, CASES["a stop string inside a token"]).choices[0]

    assert thought.message.model_extra["reasoning_content"]
    assert thought.message.content
    assert called.message.tool_calls
    assert called.logprobs.content == []
    assert any(len(entry.bytes) == 1 and entry.token == "\ufffd" for entry in split.logprobs.content)
    last = inside.logprobs.content[-1]
    assert bytes(last.bytes) != last.token.encode(), "a token that is cut keeps its name and the bytes that came of it"


def test_control_tokens_are_shown_by_name_among_the_alternatives(client: openai.OpenAI) -> None:
    answer = asked(client, {"messages": FRANCE, "top_logprobs": 20}).choices[0]

    others = [other for entry in answer.logprobs.content for other in entry.top_logprobs]
    ends = [other for other in others if other.token == "<|im_end|>"]
    assert ends
    assert all(bytes(other.bytes) == b"<|im_end|>" for other in ends)
    assert all(other.token for other in others)


def test_an_end_that_is_scored_is_shown_by_name(server: Server) -> None:
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    )
    fields: Any = {"model": "demo", "prompt": prompt, "echo": True, "logprobs": 3, "temperature": 0}
    reply = httpx2.post(f"{server.url}/v1/completions", json=fields, timeout=60).json()

    (choice,) = reply["choices"]
    told = choice["logprobs"]
    assert (told["tokens"][0], told["tokens"][-1]) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_end|>" in told["top_logprobs"][-1]
    assert told["text_offset"][-1] == len(choice["text"])
