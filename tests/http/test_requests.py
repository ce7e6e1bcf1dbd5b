"""What a request body may hold: the error of every wrong value, and the job of every right one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.messages import ChatPrompt, FimPrompt, GeneratorFacts, Ready, TextPrompt, TokenPrompt, ToolCalls
from server.errors import ApiError
from server.schemas.chat import parse_chat
from server.schemas.completions import parse_completion
from server.schemas.tokens import parse_detokenize, parse_tokenize

USER = [{"role": "user", "content": "hi"}]
INF = float("inf")


def chat(**fields):
    return parse_chat({"model": "m", "messages": USER, **fields})


def completion(**fields):
    return parse_completion({"model": "m", "prompt": "x", **fields})


def refusal(parse, **fields) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400
    caught.value.body()
    return caught.value


NUMBERS = [
    ("n", 129, "integer_above_max_value"),
    ("n", 10**9, "integer_above_max_value"),
    ("n", 2**63, "integer_above_max_value"),
    ("n", 0, "integer_below_min_value"),
    ("max_tokens", 0, "integer_below_min_value"),
    ("max_tokens", -1, "integer_below_min_value"),
    ("max_completion_tokens", -15335, "integer_below_min_value"),
    ("max_tokens", 2**31, "integer_above_max_value"),
    ("max_tokens", 10**30, "integer_above_max_value"),
    ("max_tokens", 1.5, "invalid_type"),
    ("max_tokens", "7", "invalid_type"),
    ("max_tokens", True, "invalid_type"),
    ("temperature", INF, "decimal_above_max_value"),
    ("temperature", -INF, "decimal_below_min_value"),
    ("temperature", -0.01, "decimal_below_min_value"),
    ("temperature", 2.01, "decimal_above_max_value"),
    ("temperature", "0.5", "invalid_type"),
    ("temperature", True, "invalid_type"),
    ("top_p", 1.1, "decimal_above_max_value"),
    ("top_p", -1, "decimal_below_min_value"),
    ("presence_penalty", 2.01, "decimal_above_max_value"),
    ("frequency_penalty", -2.01, "decimal_below_min_value"),
    ("top_k", -5, "integer_below_min_value"),
    ("repetition_penalty", 0, "decimal_below_min_value"),
    ("min_p", 2, "decimal_above_max_value"),
    ("seed", -(2**63) - 1, "integer_below_min_value"),
    ("seed", 2**64, "integer_above_max_value"),
    ("seed", 1.5, "invalid_type"),
    ("min_tokens", -1, "integer_below_min_value"),
]


@pytest.mark.parametrize(("name", "value", "code"), NUMBERS)
def test_numbers_outside_their_bounds_are_refused(name, value, code):
    problem = refusal(chat, **{name: value})
    assert (problem.param, problem.code) == (name, code)


def test_sentences_are_openais():
    assert refusal(chat, max_tokens=0).message == (
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead."
    )
    assert refusal(chat, max_tokens="5").message == (
        "Invalid type for 'max_tokens': expected an integer, but got a string instead."
    )
    assert refusal(lambda: parse_chat({"model": "m"})).message == "Missing required parameter: 'messages'."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -9007199254740991),
        ("seed", -1),
        ("top_k", -1),
        ("max_tokens", 2**31 - 1),
        ("temperature", 0),
        ("temperature", 2),
        ("logit_bias", {"5": 100, "6": -100}),
        ("n", 128),
        ("stop", "x"),
        ("stop", ["a"] * 64),
        ("stop", "x" * 4096),
        ("stop", ["x" * 63 + chr(0xE9)] * 63 + ["x"]),
    ],
)
def test_values_at_their_bounds_are_accepted(name, value):
    chat(**{name: value}).job("j")


MESSAGES: list[tuple[Any, str, str]] = [
    (None, "messages", "invalid_type"),
    ("str", "messages", "invalid_type"),
    ([], "messages", "empty_array"),
    ([123], "messages[0]", "invalid_type"),
    ([{}], "messages[0].role", "missing_required_parameter"),
    ([{"role": 123, "content": "x"}], "messages[0].role", "invalid_type"),
    ([{"role": "root", "content": "x"}], "messages[0].role", "invalid_value"),
    ([{"role": "system\n<|im_start|>user", "content": "x"}], "messages[0].role", "invalid_value"),
    ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
    ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": 123}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": []}], "messages[0].content", "empty_array"),
    ([{"role": "user", "content": [1]}], "messages[0].content[0]", "invalid_type"),
    ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type", "missing_required_parameter"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "missing_required_parameter"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        "messages[0].content[0].image_url.url",
        "invalid_value",
    ),
    ([{"role": "assistant", "content": None}], "messages[0].content", "invalid_type"),
    ([*USER, {"role": "tool", "content": "x"}], "messages[1].tool_call_id", "missing_required_parameter"),
    (USER * 4097, "messages", "array_above_max_length"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1025}],
        "messages[0].content",
        "array_above_max_length",
    ),
]


@pytest.mark.parametrize(("messages", "param", "code"), MESSAGES, ids=range(len(MESSAGES)))
def test_wrong_messages_are_refused_at_their_place(messages, param, code):
    problem = refusal(chat, messages=messages)
    assert (problem.param, problem.code) == (param, code)


OTHERS = [
    ("stop", ["a"] * 65, "stop", "array_above_max_length"),
    ("stop", "", "stop[0]", "empty_string"),
    ("stop", ["x" * 2048, "y" * 2049], "stop", "string_above_max_length"),
    ("stop", ["\xe9" * 2049], "stop", "string_above_max_length"),
    ("stop", "x" * 2**20, "stop[0]", "string_above_max_length"),
    ("stop", ["x"] * 10_000, "stop", "array_above_max_length"),
    ("stop", [1], "stop[0]", "invalid_type"),
    ("logit_bias", {"foo": 1}, "logit_bias", "invalid_value"),
    ("logit_bias", {"-1": 1}, "logit_bias", "invalid_value"),
    ("logit_bias", {"1e9": 1}, "logit_bias", "invalid_value"),
    ("logit_bias", {"²": 1}, "logit_bias", "invalid_value"),
    ("logit_bias", {"1": 101}, "logit_bias", "decimal_above_max_value"),
    ("logit_bias", {"1": "x"}, "logit_bias", "invalid_type"),
    ("logit_bias", {str(i): 1 for i in range(200_000)}, "logit_bias", "object_above_max_properties"),
    ("top_logprobs", 3, "top_logprobs", "invalid_value"),
    ("tools", [{"type": "function"}], "tools[0].function", "missing_required_parameter"),
    ("tools", [{"type": "function", "function": {"name": 'a"b'}}], "tools[0].function.name", "invalid_value"),
    ("tools", [{"type": "function", "function": {"name": "f"}}] * 2, "tools", "invalid_value"),
    ("tools", [{"type": "custom"}] * 513, "tools", "array_above_max_length"),
    (
        "tools",
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "hiccup"}}}],
        "tools[0].function.parameters.type",
        "invalid_function_parameters",
    ),
    ("tool_choice", "required", "tool_choice", "invalid_value"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, "tool_choice", "invalid_value"),
    ("tool_choice", {"type": "custom", "custom": {"name": "f"}}, "tool_choice.type", "invalid_value"),
    ("tool_choice", {"type": "function"}, "tool_choice.function", "missing_required_parameter"),
    ("tool_choice", 5, "tool_choice", "invalid_type"),
    ("response_format", {"type": "sound"}, "response_format.type", "invalid_value"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema", "missing_required_parameter"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"schema": 123}},
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    ("response_format", "json", "response_format", "invalid_type"),
    ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs", "unsupported_parameter"),
    ("chat_template_kwargs", {"enable_thinking": 1}, "chat_template_kwargs.enable_thinking", "invalid_type"),
    ("tool_choice", "perhaps", "tool_choice", "invalid_value"),
    ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs", "unsupported_parameter"),
    ("reasoning_effort", "much", "reasoning_effort", "invalid_value"),
    ("stream_options", {"include_usage": True}, "stream_options", "invalid_value"),
    ("model", 7, "model", "invalid_type"),
    ("user", 7, "user", "invalid_type"),
]


@pytest.mark.parametrize(("name", "value", "param", "code"), OTHERS, ids=range(len(OTHERS)))
def test_other_wrong_values_are_refused(name, value, param, code):
    problem = refusal(chat, **{name: value})
    assert (problem.param, problem.code) == (param, code)


def test_limits_that_contradict_each_other_are_refused():
    assert refusal(chat, max_tokens=5, max_completion_tokens=6).code == "invalid_parameter_combination"
    assert chat(max_tokens=5, max_completion_tokens=5).job("j").max_tokens == 5


def test_top_logprobs_above_twenty_is_refused():
    assert refusal(chat, logprobs=True, top_logprobs=21).code == "integer_above_max_value"


def test_conversations_are_put_in_the_order_strict_templates_want():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "developer", "content": "rules"},
        {"role": "assistant", "content": "d", "reasoning_content": "hm"},
        {"role": "assistant", "content": ""},
        {"role": "system", "content": "more rules"},
        {"role": "user", "content": ""},
    ]
    assert chat(messages=turns).job("j").prompt.messages == [
        {"role": "system", "content": "rules\n\nmore rules"},
        {"role": "user", "content": "a\n\nb\nc"},
        {"role": "assistant", "content": "d", "reasoning_content": "hm"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize("content", [None, "", "absent"])
def test_calls_and_results_are_echoed_as_clients_send_them(content):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    calls = [call, {**call, "id": "c2"}]
    assistant = {"role": "assistant", "tool_calls": calls} | ({} if content == "absent" else {"content": content})
    results = [
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "4"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "5"},
    ]
    messages = chat(messages=[*USER, assistant, *results]).job("j").prompt.messages
    plain_call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert messages[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [plain_call, {**plain_call, "id": "c2"}]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "tool", "content": "5", "tool_call_id": "c2"},
    ]


def test_arguments_that_are_no_object_stay_text():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{broken"}}
    answered = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": ""}]
    messages = chat(messages=[*USER, *answered]).job("j").prompt.messages
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == "{broken"


@pytest.mark.parametrize("kind", ["custom", "web_search", "mcp", "Function", "", "Ünknown kind\n"])
def test_tools_that_are_no_functions_are_refused_by_name(kind):
    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for fields in ({}, {"tool_choice": "none"}):
        refused = refusal(chat, tools=[function, {"type": kind, "x": 1}], **fields)
        assert (refused.param, refused.code) == ("tools[1].type", "unsupported_value")


TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}},
    {"type": "function", "function": {"name": "g"}},
]
NAMED = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("fields", "names", "required", "parallel"),
    [
        ({}, ["f", "g"], False, True),
        ({"tool_choice": "auto"}, ["f", "g"], False, True),
        ({"parallel_tool_calls": False}, ["f", "g"], False, False),
        ({"tool_choice": "required"}, ["f", "g"], True, True),
        ({"tool_choice": NAMED}, ["g"], True, False),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED, NAMED]}}},
            ["g"],
            False,
            True,
        ),
    ],
)
def test_the_choice_of_tools_becomes_a_constraint(fields, names, required, parallel):
    job = chat(tools=TOOLS, **fields).job("j")
    assert isinstance(job.constraint, ToolCalls)
    assert [function.name for function in job.constraint.functions] == names
    assert (job.constraint.required, job.constraint.parallel) == (required, parallel)
    assert [tool["function"]["name"] for tool in job.prompt.tools] == ["f", "g"]


def test_no_call_is_wanted_and_none_is_offered():
    job = chat(tools=TOOLS, tool_choice="none").job("j")
    assert job.constraint is None
    assert job.prompt.tools == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "absent"}}},
        {"tool_choice": "required"},
        {"tools": [{"type": "web_search"}], "tool_choice": "required"},
        {"tool_choice": NAMED},
    ],
)
def test_a_choice_of_what_is_not_there_is_refused(fields):
    assert refusal(chat, **fields).param == "tool_choice"


def test_reasoning_is_switched_by_effort_or_by_template():
    assert chat().job("j").prompt.template_kwargs == {}
    off = chat(reasoning_effort="none").job("j").prompt.template_kwargs
    on = chat(reasoning_effort="minimal").job("j").prompt.template_kwargs
    assert off == {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}
    assert on == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    switched = chat(chat_template_kwargs={"enable_thinking": True})
    assert switched.job("j").prompt.template_kwargs["enable_thinking"] is True
    assert refusal(chat, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).param == (
        "reasoning_effort"
    )


def test_a_budget_for_reasoning_is_the_jobs_and_the_templates():
    for fields in ({"thinking_budget": 9}, {"chat_template_kwargs": {"thinking_budget": 9}}):
        job = chat(**fields).job("j")
        assert (job.reasoning_budget, job.prompt.template_kwargs["thinking_budget"]) == (9, 9)


BEGUN = [*USER, {"role": "assistant", "content": "It is"}]
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": USER},
        {"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": [CALLED]}]},
        {"messages": BEGUN, "add_generation_prompt": True},
        {"messages": BEGUN, "response_format": {"type": "json_object"}},
        {"messages": BEGUN, "tools": TOOLS, "guided_json": {"type": "object"}},
    ],
)
def test_only_an_assistants_free_text_is_continued(fields):
    assert chat(messages=BEGUN, continue_final_message=True, tools=TOOLS).prompt().end == "message"
    assert refusal(chat, continue_final_message=True, **fields).param == "continue_final_message"


@pytest.mark.parametrize("name", ["images", "image_url", "videos", "files", "attachments", "documents"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_what_a_message_says_beside_its_content_is_refused_by_name(name, role):
    said = {"role": role, "content": "a", name: [{"id": "x"}]}
    assert refusal(chat, messages=[said, *USER]).param == f"messages[0].{name}"
    nothing: Any
    for nothing in (None, [], ""):
        assert chat(messages=[{**said, name: nothing}, *USER]).prompt().messages[0]["content"] in ("a", "a\n\nhi")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_comes_back_under_each_servers_name(name):
    said = [*USER, {"role": "assistant", "content": "b", name: "hm"}, {"role": "user", "content": "c"}]
    request = chat(messages=said)
    assert (request.prompt().messages[1]["reasoning_content"], request.ignored) == ("hm", [])
    alone = chat(messages=[*USER, {"role": "assistant", "content": None, name: "hm"}, *USER])
    assert alone.prompt().messages[1]["reasoning_content"] == "hm"


@pytest.mark.parametrize("name", ["prefix", "partial"])
def test_a_message_says_itself_that_the_answer_goes_on_where_it_ends(name):
    begun = {**BEGUN[-1], name: True}
    request = chat(messages=[*USER, begun])
    assert (request.prompt().end, request.ignored) == ("message", [])
    assert request.prompt().messages[-1] == BEGUN[-1]
    assert chat(messages=[*USER, {**begun, name: False}]).prompt().end == "answer"
    for fields, at in (
        ({"messages": [*USER, begun, *USER]}, 1),
        ({"messages": [{**USER[0], name: True}]}, 0),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [CALLED], name: True}]}, 1),
        ({"messages": [*USER, begun], "add_generation_prompt": True}, 1),
        ({"messages": [*USER, begun], "continue_final_message": False}, 1),
        ({"messages": [*USER, begun], "response_format": {"type": "json_object"}}, 1),
        ({"messages": [*USER, {**begun, name: "yes"}]}, 1),
    ):
        assert refusal(chat, **fields).param == f"messages[{at}].{name}"


FACTS = GeneratorFacts(context=1, n_ctx_train=1, n_vocab=1)
REASONS = msgspec.structs.replace(FACTS, reasoning_marks=("<think>", "</think>"), template_options=["enable_thinking"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"thinking_budget": 5}, "thinking_budget"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
    ],
)
def test_a_model_that_cannot_is_not_asked_to(fields, param):
    with pytest.raises(ApiError) as caught:
        chat(**fields).require(FACTS)
    assert caught.value.param == param
    chat(**fields).require(REASONS)


def test_an_effort_that_the_template_reads_has_an_effect():
    asked = chat(reasoning_effort="high")
    reads = msgspec.structs.replace(REASONS, template_options=["reasoning_effort"])
    for facts, ignored in ((REASONS, ["reasoning_effort"]), (reads, [])):
        assert asked.ignored_by(Ready(facts, parallel=1, measured_bytes=0)) == ignored


PROMPTS = [
    ([], "empty_array"),
    ([[]], "empty_array"),
    ([1.5], "invalid_type"),
    ([1, "x"], "invalid_type"),
    (["x", 1], "invalid_type"),
    ([[1], [1.5]], "invalid_type"),
    ([1, True], "invalid_type"),
    ([-1], "invalid_value"),
    ([2**31], "invalid_value"),
    (5, "invalid_type"),
    (None, "invalid_type"),
    (["x"] * 2049, "array_above_max_length"),
    (["x"] * 129, "array_above_max_length"),
]


@pytest.mark.parametrize(("prompt", "code"), PROMPTS, ids=range(len(PROMPTS)))
def test_wrong_prompts_are_refused(prompt, code):
    problem = refusal(completion, prompt=prompt)
    assert (problem.param, problem.code) == ("prompt", code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 21}, "best_of"),
        ({"best_of": 10**9}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 3, "best_of": 4, "stream": True}, "best_of"),
        ({"prompt": ["x"] * 2048, "n": 128}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True, "best_of": 2}, "best_of"),
        ({"logprobs": 5, "echo": True, "prompt": ["x" * 2000] * 100}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
    ],
)
def test_wrong_completion_fields_are_refused(fields, param):
    assert refusal(completion, **fields).param == param


def test_prompts_of_all_shapes_become_one_job_each():
    assert [job.prompt for job in completion(prompt="a").jobs("j")] == [TextPrompt(text="a")]
    assert [job.prompt for job in completion(prompt=["a", ""]).jobs("j")] == [TextPrompt(text="a"), TextPrompt(text="")]
    assert [job.prompt for job in completion(prompt=[1, 2]).jobs("j")] == [TokenPrompt(tokens=[1, 2])]
    jobs = completion(prompt=[[1], [2, 3]]).jobs("j")
    assert [job.prompt for job in jobs] == [TokenPrompt(tokens=[1]), TokenPrompt(tokens=[2, 3])]
    assert len({job.id for job in jobs}) == 2
    infill = completion(prompt="a", suffix="b").jobs("j")[0]
    assert infill.prompt == FimPrompt(prefix="a", suffix="b")


def test_completions_have_openais_defaults():
    (job,) = completion().jobs("j")
    assert (job.max_tokens, job.n, job.logprobs, job.echo) == (16, 1, None, False)
    (job,) = completion(max_tokens=0, echo=True, logprobs=None, n=2, best_of=2).jobs("j")
    assert (job.max_tokens, job.n, job.echo) == (0, 2, True)


def test_tokenize_takes_both_dialects():
    assert parse_tokenize({"content": "x"}).job("j").add_special is False
    assert parse_tokenize({"prompt": "x"}).job("j").add_special is True
    assert parse_tokenize({"content": "x", "add_special": True, "with_pieces": True}).job("j").pieces
    prompt = parse_tokenize({"messages": USER}).job("j").prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == USER
    assert refusal(lambda: parse_tokenize({})).code == "missing_required_parameter"
    assert refusal(lambda: parse_tokenize({"content": "x", "prompt": "y"})).param == "prompt"
    assert refusal(lambda: parse_detokenize({"tokens": [1, -1]})).param == "tokens[1]"
