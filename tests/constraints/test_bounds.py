"""Bounds of numbers: what is written under one never passes it, however large it is."""

from __future__ import annotations

import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from server.errors import ApiError
from server.schemas.json_schema import checked
from server.schemas.schema_shape import LARGEST_BOUND

BYTES = LLTokenizer("byte")
HOLDS = {
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
}
EDGES = [2**53, 10**16, 2**60, 10**18, LARGEST_BOUND, 2**63, 2**64, 10**30]


def may_write(schema: Any, text: str) -> bool | None:
    """Whether the checked schema lets this be written; None where llguidance refuses it."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(checked(schema, "schema").text))
    if matcher.get_error():
        return None
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@given(
    kind=st.sampled_from(["integer", "number", None]),
    key=st.sampled_from(list(HOLDS)),
    edge=st.sampled_from(EDGES) | st.integers(2**53, 2**63),
    off=st.integers(-1100, 1100),
    sign=st.sampled_from([1, -1]),
    beside=st.integers(-3000, 3000),
)
def test_no_number_passes_its_bound(kind, key, edge, off, sign, beside):
    bound = sign * (edge + off)
    schema = {key: bound} | ({"type": kind} if kind else {})
    if (bound < 0) == ("aximum" in key) and abs(bound) > LARGEST_BOUND:
        return  # nothing is left to write; see below
    number = bound + beside

    assert not may_write(schema, str(number)) or HOLDS[key](number, bound)


@pytest.mark.parametrize(
    ("kind", "bound", "beyond"),
    [
        ("integer", 1_152_921_504_606_850_000, 48),  # the double next to it lies beyond
        ("number", 1_152_921_504_606_850_000, 48),
        ("number", 2**60 + 1, 1),  # written in as few digits as tell doubles apart it is 1152921504606847000
        ("number", 2**60, 1),
        ("integer", 2**53 + 3, 1),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_rounding_leads_beyond_a_bound(kind, bound, beyond, sign):
    schema = {"type": kind, "maximum" if sign > 0 else "minimum": sign * bound}
    assert not any(may_write(schema, str(sign * (bound + more))) for more in range(1, beyond + 1))
    assert may_write(schema, str(sign * 10**15))


@pytest.mark.parametrize(
    ("schema", "numbers"),
    [
        ({"type": "integer", "maximum": 2**63 - 1}, [0, 1234567890123456789, 9_223_372_036_854_769_664]),
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            [-1234567890123456789, 9_223_372_036_854_769_664],
        ),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [0, 1234567890123456789]),
        ({"type": "integer", "maximum": 2**53 - 1}, [2**53 - 1]),
        (
            {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
            [1, -1234567890123456],
        ),
        ({"maximum": 10**18}, [10**18]),
    ],
)
def test_the_bounds_of_common_types_leave_their_numbers(schema, numbers):
    assert all(may_write(schema, str(number)) for number in numbers)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "maximum": 10**18, "exclusiveMaximum": True},
        {"type": "integer", "exclusiveMaximum": 10**18},
        {"type": "integer", "maximum": 10**18 - 1},
    ],
)
def test_a_number_that_equals_an_open_bound_is_outside(schema):
    assert not may_write(schema, str(10**18))
    assert may_write(schema, str(10**17))


@pytest.mark.parametrize("bound", [{"minimum": 2**64}, {"exclusiveMinimum": 1e300}, {"maximum": -(2**64)}])
def test_a_bound_beyond_all_numbers_is_refused_or_named(bound):
    schema = {"type": "object", "properties": {"n": {"type": "integer", **bound}}}
    (key,) = bound
    with pytest.raises(ApiError) as caught:
        checked(schema, "schema")
    assert (caught.value.param, caught.value.code) == (f"schema.properties.n.{key}", "unsupported_value")
    lenient = checked(schema, "schema", strict=False)
    assert lenient.unenforced == [key]
    assert json.loads(lenient.text)["properties"]["n"] == {"type": "integer"}
