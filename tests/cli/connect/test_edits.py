"""A client's file is changed at one place alone; a broken one is not touched."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.cli.connect import jsonc
from server.cli.connect.edits import EditError, Put, PutEntries, edited, fresh, read

BEFORE = {
    "toml": '# mine\nmodel = "gpt-5"  # keep\n\n[tools]\nweb = true\n',
    "json": '{\n\t"theme": "dark",\n\t"list": [1, 2]\n}\n',
    "jsonc": '// mine\n{\n  "theme": "dark", // keep\n  /* and this */\n  "list": [\n    1,\n    2, // two\n  ],\n}\n',
    "yaml": "# mine\ntheme: dark   # keep\n\nlist:\n- 1\n- 2  # two\n",
}
DEEP = Put(("deep", "er", "on card"), {"url": "http://x/v1", "list": [{"a": "ü"}]})


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", BEFORE)
def test_what_else_a_file_holds_stays(kind, ending):
    text = BEFORE[kind].replace("\n", ending)
    after = edited(kind, text, (DEEP,))
    assert read(kind, after) == {**read(kind, text), "deep": {"er": {"on card": DEEP.value}}}
    assert [line for line in text.split(ending) if "mine" in line or "keep" in line or "two" in line] == [
        line for line in after.split(ending) if "mine" in line or "keep" in line or "two" in line
    ]
    assert ("\r\n" in after) == (ending == "\r\n")
    assert after.count("\n") == after.count(ending)
    assert edited(kind, after, (DEEP,)) == after, "once more changes nothing"


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize("empty", ["", "\n", " \n\n"])
def test_a_file_that_says_nothing_gets_what_a_new_one_has(kind, empty):
    assert read(kind, edited(kind, empty, (DEEP,))) == read(kind, fresh(kind, (DEEP,)))


@pytest.mark.parametrize(("kind", "comment"), [("toml", "# x\n"), ("yaml", "# x\n"), ("jsonc", "// x\n/* y */\n")])
def test_comments_alone_stay(kind, comment):
    after = edited(kind, comment, (DEEP,))
    assert after.startswith(comment)
    assert read(kind, after) == read(kind, fresh(kind, (DEEP,)))


BROKEN = {
    "toml": ['a = "', "a = 1\na = 2\n", "[x\n", "deep = 3\n", "\x00"],
    "json": ["{", '{"a": 1,}', '// c\n{"a": 1}', "[1]", "{'a': 1}", '{"a" 1}', '{"a": 1} x', "nul", '{"deep": []}'],
    "jsonc": ["{", '{"a": }', "/* {}", "[1, 2]", '{"a": "\n"}', '{"a": 1 "b": 2}', "{,}", '{"deep": 7}', "[" * 5000],
    "yaml": [
        "a: [",
        "a: 1\na: 2\n",
        "--- {}\n--- {}\n",
        "- 1\n",
        "\tx: 1",
        "deep: text\n",
        "a: *nowhere\n",
        "a: &x [*x",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BROKEN.items() for text in texts])
def test_a_broken_file_is_not_touched(kind, text):
    with pytest.raises(EditError) as problem:
        edited(kind, text, (DEEP,))
    assert "\n" not in str(problem.value)


MINE = PutEntries(("models",), ({"name": "onecard", "n": 2},), lambda entry: entry.get("name") == "onecard")
OTHER = {"name": "other", "n": 1}


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize(
    "place", [[], [OTHER], [{"name": "onecard"}], [{"name": "onecard"}, OTHER, {"name": "onecard"}]]
)
def test_entries_of_an_earlier_time_are_replaced(kind, place):
    text = fresh(kind, (Put(("x",), 1), Put(("models",), place)))
    after = read(kind, edited(kind, text, (MINE,)))
    assert after == {"x": 1, "models": [*([OTHER] if OTHER in place else []), *MINE.entries]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), VALUES, max_size=4),
    st.lists(st.text(max_size=4), min_size=1, max_size=3),
    VALUES,
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_json_is_changed_at_one_place_alone(whole, path, value, indent, ascii_only):
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
    node = expected = json.loads(text)
    for key in path[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            with pytest.raises(EditError, match="holds no table"):
                edited("json", text, (Put(tuple(path), value),))
            return
    node[path[-1]] = value
    assert json.loads(edited("json", text, (Put(tuple(path), value),))) == expected


def test_a_comment_stays_with_its_line():
    text = '{\n  "a": 1 // one\n}\n'
    assert jsonc.put(text, ("b",), 2, comments=True) == '{\n  "a": 1, // one\n  "b": 2\n}\n'
