"""Patterns of ranks and scales: what peft's regular expressions mean, in a time that no pattern can stretch."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from backends.files.lora_patterns import check, number

PARTS = st.lists(st.sampled_from(["a", "b", "ab", ".", ".*"]), min_size=1, max_size=6)
NAMES = st.lists(st.sampled_from(["a", "b", "ab", "ba", "0"]), min_size=1, max_size=5)


@given(PARTS, NAMES, st.booleans())
def test_a_pattern_means_what_it_means_to_peft(parts: list[str], names: list[str], anchored: bool) -> None:
    layer, start = ".".join(names), "^" * anchored
    pattern = start + "".join(parts)
    exact = start + "".join(part if part == ".*" else re.escape(part) for part in _tokens("".join(parts)))

    found = number({"r": 8, "rank_pattern": {pattern: 3}}, "r", "rank_pattern", layer, "here")

    wanted = get_pattern_key([exact], layer) == exact if exact != layer else True
    assert (found == 3) == wanted


def _tokens(pattern: str) -> list[str]:
    return re.findall(r"\.\*|.", pattern)


def test_many_patterns_and_long_names_take_no_time() -> None:
    table = {"a.*" * n + "b": 4 for n in range(1, 300)}
    config = {"r": 8, "rank_pattern": table}
    check(config, "here")

    assert number(config, "r", "rank_pattern", "a" * 5000, "here") == 8  # as regular expressions: longer than the world
