"""Deltas as bytes: OpenAI's shapes, valid JSON whatever the text holds, and little work per chunk."""

from __future__ import annotations

import json
import time
from typing import get_args

import pytest

from backends.formats import hermes
from backends.formats.splitter import Splitter
from backends.messages import Delta, ErrorCode, Failed, Finished, TokenLogprob
from server.errors import ApiError, clip, from_failed
from server.output.chat import ChatStream, ChatWhole
from server.output.completions import CompletionStream, CompletionWhole
from server.output.frame import DONE, Comments, Head, Usage, fingerprint

HEAD = Head("chatcmpl-1", 1_700_000_000, "m", "fp_0")
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


def delta(text="", *, index=0, finish=None, logprobs=None):
    return Delta(id="j", index=index, text=text, n_tokens=1, logprobs=logprobs, finish_reason=finish)


def events(data: bytes) -> list:
    """The JSON of every `data:` event; every event must be one line."""
    blocks = data.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block[6:]) if block != "data: [DONE]" else "[DONE]" for block in blocks[:-1]]


def splitter():
    calls = hermes.FORMAT.read(new_id=lambda: "call_1")
    return Splitter(marks=("<think>", "</think>"), opened=False, calls=calls)


def test_a_stream_opens_with_the_role_and_ends_with_a_reason_and_done():
    stream = ChatStream(HEAD, include_usage=False, new_splitter=lambda: None)
    data = stream.delta(delta('Hé\u2028\n"x"'), 0) + stream.delta(delta("", finish="stop"), 0) + stream.end(Usage())
    *chunks, done = events(data)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": 'Hé\u2028\n"x"'},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_is_null_until_the_last_chunk_which_has_no_choice():
    stream = ChatStream(HEAD, include_usage=True, new_splitter=lambda: None)
    usage = Usage()
    usage.add(Finished(id="j", prompt_tokens=3, completion_tokens=4, cached_tokens=2))
    *chunks, last, _ = events(stream.delta(delta("a", finish="length"), 0) + stream.end(usage))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_reasoning_content_and_calls_have_their_own_fields():
    stream = ChatStream(HEAD, include_usage=False, new_splitter=splitter)
    chunks = events(stream.delta(delta("<think>hm</think>\nok " + CALL), 0) + stream.delta(delta(finish="stop"), 0))
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:]] == [
        {"reasoning_content": "hm"},
        {"content": "ok"},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x": 1}'}}]},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_text_that_is_held_back_makes_no_chunk():
    stream = ChatStream(HEAD, include_usage=False, new_splitter=splitter)
    stream.delta(delta("a"), 0)
    assert stream.delta(delta("<tool_"), 0) == b""
    assert events(stream.delta(delta("x", finish="stop"), 0))[0]["choices"][0]["delta"] == {"content": "<tool_x"}


def test_choices_are_told_apart():
    stream = ChatStream(HEAD, include_usage=False, new_splitter=splitter)
    data = b"".join(stream.delta(delta(text, index=i), i) for i, text in ((0, "<thi"), (1, "b"), (0, "nk>a")))
    seen = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in events(data)]
    opening = {"role": "assistant", "content": ""}
    assert seen == [(0, opening), (1, opening), (1, {"content": "b"}), (0, {"reasoning_content": "a"})]


def test_log_probabilities_survive_infinity_and_half_characters():
    tokens = [
        TokenLogprob("\ufffd", float("-inf"), b"\xe2\x82", [TokenLogprob("a", -0.5, b"a")]),
        TokenLogprob("\ufffd", -1.0, b"\xac"),
    ]
    stream = ChatStream(HEAD, include_usage=False, new_splitter=lambda: None)
    chunk = events(stream.delta(delta("€", logprobs=tokens), 0))[-1]
    assert chunk["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -9999.0,
                "bytes": [0xE2, 0x82],
                "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
            },
            {"token": "\ufffd", "logprob": -1.0, "bytes": [0xAC], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_a_whole_chat_completion_has_openais_shape():
    whole = ChatWhole(n=2, new_splitter=splitter)
    for choice, text, finish in ((0, "<think>hm</think>", None), (1, CALL, "stop"), (0, "yes", "length")):
        whole.add(delta(text, finish=finish), choice)
    body = json.loads(whole.body(HEAD, Usage(prompt_tokens=1, completion_tokens=2)))
    first, second = body["choices"]
    assert first["message"] == {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "annotations": [],
        "reasoning_content": "hm",
    }
    assert (first["finish_reason"], second["finish_reason"]) == ("length", "tool_calls")
    assert second["message"]["content"] is None
    assert second["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]
    assert body["usage"]["total_tokens"] == 3


def test_text_completions_have_the_legacy_shape():
    tokens = [TokenLogprob("ab", -1.0, b"ab", [TokenLogprob("x", -0.1, b"x")]), TokenLogprob("c", -2.0, b"c")]
    whole = CompletionWhole(n=1, with_top=True)
    whole.add(delta("ab", logprobs=tokens[:1]), 0)
    whole.add(delta("c", logprobs=tokens[1:], finish="stop"), 0)
    (choice,) = json.loads(whole.body(HEAD, Usage()))["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"x": -0.1, "ab": -1.0}, {"c": -2.0}],
        "text_offset": [0, 2],
    }
    stream = CompletionStream(HEAD, include_usage=False, with_top=True)
    chunks = events(
        stream.delta(delta("ab", logprobs=tokens[:1]), 0)
        + stream.delta(delta(""), 0)
        + stream.delta(delta("c", logprobs=tokens[1:], finish="stop"), 0)
    )
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [2]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]


def test_an_error_ends_a_stream_without_done():
    frame = Comments().error(from_failed(Failed(id="j", code="worker_crashed", message="it crashed")))
    assert DONE not in frame
    assert events(frame) == [
        {"error": {"message": "it crashed", "type": "server_error", "param": None, "code": "worker_crashed"}}
    ]


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_failure_has_a_status_and_retry_words_in_bounds(code):
    problem = from_failed(Failed(id="j", code=code, message="m", param="prompt", retry_after_s=0.01), params={})
    assert 400 <= problem.status < 600
    assert json.loads(problem.body())["error"].keys() == {"message", "type", "param", "code"}
    if (seconds := problem.headers.get("retry-after")) is not None:
        assert 1 <= int(seconds) <= 60
    if problem.status in (429, 503) and problem.headers.get("x-should-retry") != "false":
        assert "retry-after" in problem.headers


def test_long_waits_are_capped_and_parameters_renamed():
    failed = Failed(id="j", code="queue_full", message="m", param="prompt", retry_after_s=1e9)
    problem = from_failed(failed, params={"prompt": "messages"})
    assert (problem.headers["retry-after"], problem.param) == ("60", "messages")


@pytest.mark.parametrize(
    "value", ["\ud800", "x" * 10_000, "\x1b[31m\r\n", 10**5000, float("nan"), {}, None, True], ids=range(8)
)
def test_any_value_can_be_shown_in_an_error(value):
    shown = clip(value)
    assert len(shown) <= 64
    assert shown.isprintable()
    json.loads(ApiError(400, f"got {shown}", param=shown).body())
    json.loads(ApiError(400, "\ud800", param="\udfff").body())


def test_the_fingerprint_is_stable():
    assert fingerprint("m", None) == fingerprint("m", None) != fingerprint("n", None)


def test_a_chunk_costs_little():
    stream = ChatStream(HEAD, include_usage=True, new_splitter=splitter)
    stream.delta(delta("start"), 0)
    event = delta(" word")
    (chunk,) = events(stream.delta(event, 0))

    ours_s, dump_s = (
        min(taken)
        for taken in zip(
            *((cpu_s(lambda: stream.delta(event, 0)), cpu_s(lambda: json.dumps(chunk))) for _ in range(5)), strict=True
        )
    )

    assert ours_s < 8 * dump_s, (ours_s, dump_s)  # three times: reasoning and calls are looked for as well


def cpu_s(work):
    """Processor time of doing it two thousand times."""
    began = time.process_time()
    for _ in range(2000):
        work()
    return time.process_time() - began


def test_offsets_count_characters_where_tokens_hold_half_of_one():
    fox = "🦊".encode()
    tokens = [TokenLogprob("a", None, b"a"), *(TokenLogprob("\ufffd", -1.0, part) for part in (fox[:3], fox[3:]))]
    stream = CompletionStream(HEAD, include_usage=False, with_top=True)
    chunks = events(
        stream.delta(delta("a🦊", logprobs=tokens), 0)
        + stream.delta(delta("b", logprobs=[TokenLogprob("b", -1.0, b"b")], finish="stop"), 0)
    )
    first, second = (chunk["choices"][0]["logprobs"] for chunk in chunks)
    assert first["text_offset"] == [0, 1, 1]
    assert second["text_offset"] == [2]
    assert first["token_logprobs"] == [None, -1.0, -1.0]
    assert first["top_logprobs"][0] is None
