"""What a batch file holds, line by line."""

import json

import pytest

from server.batches import reading
from server.batches.reading import read_input

CHAT = "/v1/chat/completions"


def line(custom_id="a", **other) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **other}).encode() + b"\n"


def test_requests_are_read_in_order_and_empty_lines_are_nothing():
    read = read_input([line("a"), b"\n", b"  \r\n", line("b", extra=1)], CHAT)
    assert read.problems == []
    assert [(one.n, one.custom_id, one.model) for one in read.lines] == [(1, "a", "m"), (4, "b", "m")]
    assert json.loads(read.lines[0].body)["messages"][0]["content"] == "hi"


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (line(custom_id=""), "missing_required_parameter", "custom_id"),
        (line(custom_id=7), "missing_required_parameter", "custom_id"),
        (line(custom_id="x" * 2000), "missing_required_parameter", "custom_id"),
        (line(custom_id="\ud800"), "invalid_value", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "mismatched_endpoint", "url"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(body={"stream": True}), "invalid_value", "body.stream"),
        (line(body={"prompt": "\ud800"}), "invalid_json_line", "body"),
        (line(body={"top_p": 1}).replace(b'"top_p"', b'"top_p": 0, "top_p"'), "invalid_json_line", None),
        (line(body={"temperature": float("nan")}), "invalid_json_line", "body"),
        (line(body={"top_p": 0.5}).replace(b"0.5", b"1e999"), "invalid_json_line", "body"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(raw, code, param):
    read = read_input([line("first"), raw], CHAT)
    (problem,) = read.problems
    assert (problem.line, problem.code, problem.param) == (2, code, param)


def test_a_custom_id_stands_once():
    (problem,) = read_input([line("a"), line("b"), line("a")], CHAT).problems
    assert (problem.line, problem.code) == (3, "duplicate_custom_id")
    assert "line 1" in problem.message


def test_an_empty_file_and_one_that_is_too_long_are_refused_as_a_whole(monkeypatch):
    assert read_input([], CHAT).problems[0].code == "empty_file"
    monkeypatch.setattr(reading, "MAX_LINES", 2)
    assert read_input([line(str(n)) for n in range(9)], CHAT).problems[0].code == "too_many_requests"
    assert len(read_input([b"{"] * 500, CHAT).problems) == 100


def test_requests_that_begin_alike_have_the_same_beginning():
    def beginning(body):
        return read_input([line(body={"model": "m", **body})], CHAT).lines[0].beginning

    long = "You are a very patient helper. " * 100
    first, second = ({"messages": [{"role": "system", "content": long + end}]} for end in ("a", "b"))
    assert beginning(first) == beginning(second)
    assert beginning({"prompt": "a"}) != beginning({"prompt": "b"})
