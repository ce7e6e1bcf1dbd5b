"""What models of every family write, odd ends included, through the engine and the server's reader.

The model says its text whatever it is asked, and wants to end behind it. So what is lost or made up is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backends import registry
from backends.formats.pieces import CallArguments, CallBegins, Content, Reasoning
from backends.messages import ChatPrompt, Delta, Generate, JsonSchema, Sampling, ToolCalls
from server.output.sorting import Sorter
from server.output.splitters import splitters
from tests.formats.walks import function
from tests.gguf.driver import run
from tests.models import replay
from tests.specs import spec_of

pytestmark = pytest.mark.engine

TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS = '{"city": "Rom"}'
CALL = [("get", ARGUMENTS)]
THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class Family:
    """What a template holds, and how such a model writes a call."""

    marks: str
    call: str
    think: tuple[str, str] = THINK
    controls: tuple[str, ...] = ()


HERMES = '<tool_call>\n{"name": "get", "arguments": {"city": "Rom"}}\n</tool_call>'
FAMILIES = {
    "hermes": Family("<tool_call> tools", HERMES),
    "hermes, tokens": Family(
        "<tool_call> tools", HERMES, controls=("<think>", "</think>", "<tool_call>", "</tool_call>")
    ),
    "generic": Family("nothing", HERMES),
    "qwen-xml": Family(
        "<function= <parameter=",
        "<tool_call>\n<function=get>\n<parameter=city>\nRom\n</parameter>\n</function>\n</tool_call>",
    ),
    "deepseek": Family(
        "<｜tool▁calls▁begin｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{"city": "Rom"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-r1": Family(
        "<｜tool▁calls▁begin｜> ```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n"
        '{"city": "Rom"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    "mistral": Family(
        "[TOOL_CALLS]", '[TOOL_CALLS][{"name": "get", "arguments": {"city": "Rom"}}]', ("[THINK]", "[/THINK]")
    ),
    "mistral-args": Family("[TOOL_CALLS][ARGS]", '[TOOL_CALLS]get[ARGS]{"city": "Rom"}', ("[THINK]", "[/THINK]")),
    "phi": Family("<|tool|>", '<|tool_call|>[{"name": "get", "arguments": {"city": "Rom"}}]<|/tool_call|>'),
    "llama": Family(
        "parameters ipython",
        '<|python_tag|>{"name": "get", "parameters": {"city": "Rom"}}',
        controls=("<|python_tag|>",),
    ),
    "harmony": Family(
        "<|channel|> <|message|>",
        '<|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"city": "Rom"}',
        ("<|channel|>analysis<|message|>", "<|end|>"),
        ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"),
    ),
    "gemma": Family(
        "<|tool_call>", '<|tool_call>call:get{city:<|"|>Rom<|"|>}<tool_call|>', ("<|channel>thought\n", "<channel|>")
    ),
}


WITH_TOKENS = {
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "mistral-args": ("[TOOL_CALLS]", "[ARGS]"),
    "phi": ("<|tool_call|>", "<|/tool_call|>"),
    "gemma": ("<|tool_call>", '<|"|>', "<tool_call|>"),
}
"""Families whose vocabularies have a control token for each mark."""


def reads(path: Path, **fields: Any) -> tuple[str, str, list[tuple[str, str]], str | None, int]:
    """Reasoning, content, calls, why it ended, and the tokens it took."""
    spec = spec_of(name="replay", backend="gguf", path=str(path), context=replay.CONTEXT, parallel=1, threads=1)
    engine = registry.engine_of("gguf")(spec, lambda _: None)
    try:
        tools = fields.pop("tools", [TOOL])
        prompt = ChatPrompt([{"role": "user", "content": "x"}], tools=tools)
        (outcome,) = run(engine, [Generate(id="j", prompt=prompt, sampling=Sampling(temperature=0.0), **fields)])
        finished = outcome.finished
        sorter = Sorter(splitters(tools, engine.ready(), outcome.started)())
    finally:
        engine.close()
    pieces = [said.piece for event in outcome.events if isinstance(event, Delta) for said in sorter.said(event)]
    calls = [
        (
            call.name,
            "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.number == call.number),
        )
        for call in pieces
        if isinstance(call, CallBegins)
    ]
    text = ["".join(p.text for p in pieces if isinstance(p, kind)) for kind in (Reasoning, Content)]
    return text[0], text[1], calls, sorter.finish_reason, finished.completion_tokens


def model(folder: Path, family: Family, text: str, *, opened: bool) -> Path:
    """It says the text, behind a prompt that has opened its reasoning or not."""
    opening, closing = family.think
    marks = f"{opening} {closing} {family.marks}"
    said = text.replace("<OPEN>", opening).replace("<CLOSE>", closing).replace("<CALL>", family.call)
    prompt = f"Q:{opening}" if opened else "Q:A:"
    return replay.write(folder / "m.gguf", replay.Said(marks, prompt, said, family.controls))


def tool_calls(**fields: Any) -> ToolCalls:
    return ToolCalls(functions=[function(TOOL)], **fields)


AUTO = [
    ("hm <CALL>", True, ("hm", "", CALL, "tool_calls")),
    ("<CALL>", True, ("", "", CALL, "tool_calls")),
    ("<OPEN>hm<CALL>", False, ("hm", "", CALL, "tool_calls")),
    ("hm<CLOSE>\n\n<CALL>", True, ("hm", "", CALL, "tool_calls")),
    ("hm", True, ("hm", "", [], "stop")),
    ("<OPEN>hm", False, ("hm", "", [], "stop")),
    ("", True, ("", "", [], "stop")),
    ("hm<CLOSE>yes", True, ("hm", "yes", [], "stop")),
    ("hm<CLOSE>", True, ("hm", "", [], "stop")),
    ("a<CLOSE>\n<OPEN>b<CLOSE>yes", True, ("a\n\nb", "yes", [], "stop")),
    ("a<CLOSE>yes<CLOSE>no", True, ("a", "yes<CLOSE>no", [], "stop")),
    ("yes<CLOSE>no", False, ("", "yes<CLOSE>no", [], "stop")),
]


@pytest.mark.parametrize("name", WITH_TOKENS)
@pytest.mark.parametrize("required", [False, True])
def test_marks_within_a_call_are_the_tokens_that_they_are(tmp_path: Path, name: str, required: bool) -> None:
    family = replace(FAMILIES[name], controls=WITH_TOKENS[name])
    path = model(tmp_path, family, "<CALL>", opened=False)

    *said, n_tokens = reads(path, constraint=tool_calls(required=required), max_tokens=200)

    assert said == ["", "", CALL, "tool_calls"]
    as_text = sum(len(mark.encode()) for mark in WITH_TOKENS[name] for _ in range(family.call.count(mark)))
    n_marks = sum(family.call.count(mark) for mark in WITH_TOKENS[name])
    assert n_tokens <= len(family.call.encode()) - as_text + n_marks + 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("text", "opened", "right"), AUTO, ids=range(len(AUTO)))
def test_a_model_may_end_and_call_wherever_its_reasoning_stands(
    name: str, text: str, opened: bool, right: tuple[Any, ...], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    *found, _ = reads(model(tmp_path, family, text, opened=opened), constraint=tool_calls())
    reasoning, content, calls, reason = right
    assert found == [reasoning, content.replace("<CLOSE>", family.think[1]), calls, reason]


OTHERS = ["hermes", "qwen-xml", "llama", "mistral-args", "gemma", "harmony"]
BEHIND = [
    ("<CALL>\n<CLOSE>", False, ("", "<CLOSE>", CALL, "tool_calls")),
    ("<CALL>\n<CLOSE>", True, ("", "", CALL, "tool_calls")),
    ("<CALL>\n<b>so</b> it is", False, ("", "<b>so</b> it is", CALL, "tool_calls")),
    ("<CALL>\n[so] it is; {no}", False, ("", "[so] it is; {no}", CALL, "tool_calls")),
    ("<CALL> so, <CALL>", False, ("", "so,", CALL * 2, "tool_calls")),
]


@pytest.mark.parametrize("required", [False, True], ids=["auto", "required"])
@pytest.mark.parametrize("name", ["hermes, tokens", *OTHERS[:-1]])
@pytest.mark.parametrize(("text", "opened", "right"), BEHIND, ids=range(len(BEHIND)))
def test_what_stands_behind_a_call_is_content_and_no_other_call(
    name: str, text: str, opened: bool, right: tuple[Any, ...], required: bool, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    *found, n_tokens = reads(model(tmp_path, family, text, opened=opened), constraint=tool_calls(required=required))
    reasoning, content, calls, reason = right
    assert found == [reasoning, content.replace("<CLOSE>", family.think[1]), calls, reason]
    assert n_tokens > len(content)


@pytest.mark.parametrize("text", ["<CALL>", "hm<CLOSE><CALL>", "<CALL> so"])
def test_a_call_of_gpt_oss_ends_its_answer(text: str, tmp_path: Path) -> None:
    opened = "CLOSE" in text
    path = model(tmp_path, FAMILIES["harmony"], text, opened=opened)
    assert reads(path, constraint=tool_calls())[:4] == ("hm" if opened else "", "", CALL, "tool_calls")


SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("text", ["hm", "hm hm hm", "", "hm <CALL>"])
def test_a_required_call_follows_reasoning_that_the_model_would_end_with(name: str, text: str, tmp_path: Path) -> None:
    path = model(tmp_path, FAMILIES[name], text, opened=True)
    reasoning, content, calls, reason, _ = reads(path, constraint=tool_calls(required=True), max_tokens=300)
    assert (reasoning, content) == (text.replace("<CALL>", "").rstrip(), "")
    assert [name for name, _ in calls] == ["get"]
    assert text != "hm <CALL>" or (calls, reason) == (CALL, "tool_calls")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("text", ["hm", "", 'hm<CLOSE>\n\n{"a": 5}', "hm<CLOSE>"])
def test_a_schema_begins_where_the_model_would_end_its_reasoning(name: str, text: str, tmp_path: Path) -> None:
    path = model(tmp_path, FAMILIES[name], text, opened=True)
    reasoning, content, calls, _, _ = reads(path, constraint=JsonSchema(schema=SCHEMA), max_tokens=60, tools=[])
    assert (reasoning, calls) == (text.partition("<CLOSE>")[0], [])
    assert content.lstrip().startswith("{")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("text", "opened"), [('hm<CLOSE>\n\n{"a": 5}', True), ('hm<CLOSE>{"a": 5}', True), ('\n{"a": 5}', False)]
)
def test_an_answer_of_a_form_is_not_made_a_call_by_a_line_end(
    name: str, text: str, opened: bool, tmp_path: Path
) -> None:
    final = "<|channel|>final<|message|>" if name == "harmony" else ""
    path = model(tmp_path, FAMILIES[name], text.replace("{", final + "{"), opened=opened)
    either = tool_calls(content=JsonSchema(schema=SCHEMA))
    reasoning, content, calls, reason, _ = reads(path, constraint=either, max_tokens=60)
    assert (reasoning, content.lstrip(), calls, reason) == ("hm" if opened else "", '{"a": 5}', [], "stop")


@pytest.mark.parametrize("name", OTHERS)
def test_a_budget_closes_one_block_and_no_call(name: str, tmp_path: Path) -> None:
    path = model(tmp_path, FAMILIES[name], "hm hm hm hm hm hm", opened=True)
    reasoning, _, calls, _, _ = reads(path, constraint=tool_calls(), reasoning_budget=5)
    assert ("hm hm", calls) == (reasoning, [])


NO_CALLS = [
    "<CALL>",
    'I write {"name": "get", "arguments": {"city": "Rom"}}',
    '{"name": "nope", "arguments": {}}',
    '{"name": "get"}',
    "`[TOOL_CALLS]` or <tool_call>?",
]


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "deepseek", "qwen-xml", "gemma", "harmony"])
@pytest.mark.parametrize("text", NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_calls_nothing_that_was_offered_is_content(name: str, text: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    renamed = family.call.replace("get", "nope").replace("<|start|>assistant", "")
    path = model(tmp_path, replace(family, call=renamed), text, opened=False)
    said = text.replace("<CALL>", renamed)
    assert reads(path, constraint=tool_calls())[:4] == ("", said, [], "stop")


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral-args", "qwen-xml", "harmony"])
def test_where_no_tool_is_offered_nothing_is_a_call(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    path = model(tmp_path, family, "so <CALL>", opened=False)
    assert reads(path, tools=[])[:4] == ("", f"so {family.call}", [], "stop")


MENTIONS = ["I write <tool_call> now", "I write `<tool_call>` first", "<tool_call>?", "<tool_call> and </tool_call>"]


@pytest.mark.parametrize("text", MENTIONS)
def test_a_call_that_reasoning_only_mentions_is_reasoning(text: str, tmp_path: Path) -> None:
    path = model(tmp_path, FAMILIES["hermes"], f"{text}<CLOSE>yes", opened=True)
    assert reads(path, constraint=tool_calls())[:4] == (text, "yes", [], "stop")


STOPS = [
    ("I add<CLOSE>yes add no", True, ["add"], ("I add", "yes ", [], "stop")),
    ("a b<CLOSE>\n\nyes\n\nno", True, ["\n\n"], ("a b", "yes", [], "stop")),
    ("a<CLOSE>yes", True, ["<CLOSE>"], ("a", "yes", [], "stop")),
    ("a<CLOSE>yes<CLOSE>no", True, ["<CLOSE>"], ("a", "yes", [], "stop")),
    ("a ye<CLOSE>s no", True, ["yes"], ("a ye", "s no", [], "stop")),
    ("say <CALL>", True, ["say", "Rom", "get", "{"], ("say", "", CALL, "tool_calls")),
    ("Rom? <CALL>", False, ["city", 'om"', "tool"], ("", "Rom?", CALL, "tool_calls")),
    ("one two <CALL>", False, ["two"], ("", "one ", [], "stop")),
    ("<OPEN>two<CLOSE>one two three", False, ["two"], ("two", "one ", [], "stop")),
    ("say <tool_", False, ["<tool"], ("", "say ", [], "stop")),
    ("say it", False, ["it is"], ("", "say it", [], "stop")),
]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("text", "opened", "stops", "right"), STOPS, ids=range(len(STOPS)))
def test_stop_strings_are_about_the_answer_alone(
    name: str, text: str, opened: bool, stops: list[str], right: tuple[Any, ...], tmp_path: Path
) -> None:
    family = FAMILIES[name]
    path = model(tmp_path, family, text, opened=opened)
    stops = [stop.replace("<CLOSE>", family.think[1]) for stop in stops]
    assert reads(path, constraint=tool_calls(), stop=stops)[:4] == right
