"""What a batch file holds, line by line."""

import io
import json

import pytest

from server.batches import reading
from server.batches.reading import Line, Problem, cut_lines, read_lines

CHAT = "/v1/chat/completions"


def line(custom_id="a", **other) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **other}).encode() + b"\n"


def read(*file: bytes) -> tuple[list[Line], list[Problem]]:
    """Requests, and problems."""
    found = list(read_lines(file, CHAT))
    return [one for one in found if isinstance(one, Line)], [one for one in found if isinstance(one, Problem)]


def test_requests_are_read_in_order_and_empty_lines_are_nothing():
    lines, problems = read(line("a"), b"\n", b"  \r\n", line("b", extra=1))
    assert problems == []
    assert [(one.n, one.custom_id, one.model) for one in lines] == [(1, "a", "m"), (4, "b", "m")]
    assert json.loads(lines[0].body)["messages"][0]["content"] == "hi"


def test_a_mark_of_byte_order_before_the_first_request_is_nothing():
    lines, problems = read(*cut_lines(io.BytesIO(b"\xef\xbb\xbf" + line("a") + line("b"))))
    assert (problems, [one.custom_id for one in lines]) == ([], ["a", "b"])


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
        (line(custom_id="\ud800"), "invalid_json_line", None),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "mismatched_endpoint", "url"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(body={"stream": True}), "invalid_value", "body.stream"),
        (line(body={"prompt": "\ud800"}), "invalid_json_line", None),
        (line(body={"top_p": 1}).replace(b'"top_p"', b'"top_p": 0, "top_p"'), "invalid_json_line", None),
        (line(body={"temperature": float("nan")}), "invalid_json_line", None),
        (line(body={"top_p": 0.5}).replace(b"0.5", b"1e999"), "invalid_json_line", "body"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(raw, code, param):
    _, (problem,) = read(line("first"), raw)
    assert (problem.line, problem.code, problem.param) == (2, code, param)


def test_a_custom_id_stands_once():
    _, (problem,) = read(line("a"), line("b"), line("a"))
    assert (problem.line, problem.code) == (3, "duplicate_custom_id")
    assert "line 1" in problem.message


def test_an_empty_file_and_one_that_is_too_long_are_refused_as_a_whole(monkeypatch):
    assert read()[1][0].code == "empty_file"
    monkeypatch.setattr(reading, "MAX_LINES", 2)
    assert read(*(line(str(n)) for n in range(9)))[1][0].code == "too_many_requests"
    assert len(read(*[b"{"] * 500)[1]) == 100


def test_a_line_is_read_when_it_is_asked_for_and_no_further_than_it_may_be_long(monkeypatch):
    file = io.BytesIO(line("a") + line("long", pad="x" * 500) + line("c"))
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 400)
    found = read_lines(cut_lines(file), CHAT)
    first = next(found)
    assert isinstance(first, Line)
    assert (first.custom_id, file.tell()) == ("a", len(line("a")))
    (problem,) = list(found)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.code) == (2, "request_too_large")
    assert [len(raw) for raw in cut_lines(io.BytesIO(b"x" * 1000 + b"\ny\n"))] == [401, 2]


def test_a_line_holds_no_more_structure_than_a_body_may():
    _, (problem,) = read(line(body={"input": [[]] * 100_000}))
    assert (problem.line, problem.code) == (1, "invalid_json_line")
    assert "too many JSON values" in problem.message


def test_requests_that_begin_alike_have_the_same_beginning():
    def beginning(body):
        return read(line(body={"model": "m", **body}))[0][0].beginning

    long = "You are a very patient helper. " * 100
    first, second = ({"messages": [{"role": "system", "content": long + end}]} for end in ("a", "b"))
    assert beginning(first) == beginning(second)
    assert beginning({"prompt": "a"}) != beginning({"prompt": "b"})
