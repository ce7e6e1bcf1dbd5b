"""Bodies are one JSON object or a 400, and reading one never takes long."""

from __future__ import annotations

import time

import pytest

from server.errors import ApiError
from server.schemas.body import LARGE_BODY_BYTES, MAX_STRUCTURE, overfull_field, parse_object

BAD = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "number": b"42",
    "string": b'"x"',
    "truncated": b'{"a": [1, 2',
    "two documents": b'{"a": 1} {"a": 2}',
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-16 without mark": '{"a": 1}'.encode("utf-16-le"),
    "duplicate key": b'{"secret-key": 1, "secret-key": 2}',
    "nested duplicate key": b'{"a": {"b": 1, "b": 2}}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "5000 digits": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "invalid utf-8": b'{"a": "\xff\xfe"}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate key": b'{"\\udc00": 1}',
    "raw control character": b'{"a": "\n"}',
    "trailing comma": b'{"a": 1,}',
    "comment": b'{"a": 1} // x',
    "250 deep": b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}",
    "3000 deep": b'{"a": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001,
    "100000 deep": b'{"a": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_no_object_is_refused(body):
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert "secret" not in caught.value.message
    caught.value.body()


def test_an_object_is_read():
    assert parse_object(b' {"a": "\\u0000 \\ud83d\\ude00 \\u202e", "b": 1e3} ') == {
        "a": "\0 \U0001f600 \u202e",
        "b": 1e3,
    }


MANY = {
    "empty arrays": b"[" + b"[]," * 2_500_000 + b"1]",
    "objects": b"[" + b'{"a":1},' * 1_000_000 + b"1]",
    "messages": b"[" + b'{"role":"user","content":"x"},' * 270_000 + b"1]",
    "integers": b"[" + b"1," * 4_000_000 + b"1]",
    "short strings": b"[" + b'"\xc3\xa9",' * 1_600_000 + b"1]",
    "keys": b"{" + b",".join(b'"%d":1' % i for i in range(600_000)) + b"}",
    "escaped quotes without end": b'["' + b'\\"' * 4_000_000,
    "quotes": b'"' * 8_000_000,
}


@pytest.mark.parametrize("value", MANY.values(), ids=MANY.keys())
def test_a_body_of_very_many_values_is_refused_or_read_quickly(value):
    # The scan gives the interpreter up between tokens; only the parser keeps it, for what the scan let through.
    body = b'{"a":' + value + b"}"
    begin = time.process_time()
    with pytest.raises(ApiError):
        parse_object(body)
    assert time.process_time() - begin < 2


def test_text_full_of_brackets_is_no_structure():
    source = ("int f(int a[], char *s) { if (a[0] == '{') { g(a, s, \\\"x\\\"); } } " * 40_000).encode()
    body = b'{"messages": [{"role": "user", "content": "' + source + b'"}]}'
    assert body.count(b"{") + body.count(b"[") > MAX_STRUCTURE / 10
    assert overfull_field(body, MAX_STRUCTURE) is None
    assert len(body) > LARGE_BODY_BYTES
    assert parse_object(body)["messages"][0]["role"] == "user"


def test_structure_is_counted_outside_strings_only():
    assert overfull_field(b"[" * 10, 99) is not None
    assert overfull_field(b'"' + b"[" * 10 + b'"', 99) is None
    assert overfull_field(b'"\\"' + b"[" * 10 + b'"', 99) is None
    assert overfull_field(b'"\\\\"' + b"[" * 10, 99) is not None


def test_the_field_that_holds_too_much_is_named():
    body = b'{"model": "m", "x": {"y": [1]}, "logit_bias": {' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}}"
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert caught.value.param == "logit_bias"
