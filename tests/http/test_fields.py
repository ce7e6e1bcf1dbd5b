"""Every field of OpenAI's request schemas has a place in our tables, and what the tables say is what happens."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.schemas import chat, completions, leases, tokens
from server.schemas.fields import ignored_header
from server.schemas.surface import Use

CHAT, COMPLETION = chat.SURFACE, completions.SURFACE
CHAT_NAMES = [
    "messages",
    "model",
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
]
COMPLETION_NAMES = [
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
]

ASKING = {
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "verbosity": "low",
    "web_search_options": {},
    "moderation": {"model": "omni"},
    "functions": [{"name": "f"}],
    "function_call": "auto",
}
HARMLESS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"ttl": "30m"},
}


def chat_body(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def test_every_chat_field_of_openai_is_classified():
    assert set(CHAT_NAMES) <= set(CHAT.fields)


def test_every_completion_field_of_openai_is_classified():
    assert set(COMPLETION_NAMES) <= set(COMPLETION.fields)


@pytest.mark.parametrize("name", [name for name, use in CHAT.fields.items() if use is Use.HONOURED])
def test_honoured_chat_fields_are_fields_of_the_request(name):
    assert name in chat.ChatRequest.model_fields


@pytest.mark.parametrize("name", [name for name, use in COMPLETION.fields.items() if use is Use.HONOURED])
def test_honoured_completion_fields_are_fields_of_the_request(name):
    assert name in completions.CompletionRequest.model_fields


@pytest.mark.parametrize("name", [name for name, use in CHAT.fields.items() if use is Use.NEUTRAL_ONLY])
def test_unsupported_chat_fields_are_refused_by_name(name):
    with pytest.raises(ApiError) as caught:
        chat.parse_chat(chat_body(**{name: ASKING.get(name, "x")}))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("surface", "parse", "base"),
    [
        (CHAT, chat.parse_chat, chat_body()),
        (COMPLETION, completions.parse_completion, {"model": "m", "prompt": "x"}),
    ],
)
def test_null_asks_for_nothing_in_any_optional_field(surface, parse, base):
    request = parse(base | {name: None for name in surface.fields if name not in base})
    assert request.ignored == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("verbosity", "medium"),
        ("function_call", "none"),
        *HARMLESS.items(),
    ],
)
def test_fields_that_change_nothing_are_accepted_and_not_named(name, value):
    assert chat.parse_chat(chat_body(**{name: value})).ignored == []


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, 0.0), (-1, -1.0), (90, 90.0), ("5m", 300.0), ("500ms", 0.5), ("1.5h", 5400.0), ("-1m", -1.0),
        ("1h30m", 5400.0), ("1h0m0.5s", 3600.5), ("1d", 86400.0), ("1d12h", 129600.0), ("2m30s", 150.0), ("+30s", 30.0),
        ("250us", 0.00025), ("250µs", 0.00025), ("1000000000ns", 1.0), (".5m", 30.0), ("5.s", 5.0), ("300", 300.0),
        ("-1h30m", -1.0), ("-1", -1.0), (-(10**310), -1.0), ("0", 0.0), ("0s", 0.0), ("87600h", 315360000.0),
    ],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_duration(given, seconds):
    assert chat.parse_chat(chat_body(keep_alive=given)).keep_alive == seconds


@pytest.mark.parametrize(
    "given",
    [
        "soon",
        "",
        True,
        [],
        "5 m",
        "1h30",
        "30m1",
        "1h 30m",
        "m",
        "-",
        "1e3s",
        "--1s",
        "1h-30m",
        ".",
        ".s",
        "٣s",
        "1H",
        1e99,
        10**310,
        10**4000,
        float("nan"),
        "9" * 400,
    ],
)
def test_keep_alive_that_is_no_time_is_refused(given):
    """An integer may be larger than any float."""
    with pytest.raises(ApiError) as refused:
        chat.parse_chat(chat_body(keep_alive=given))
    assert refused.value.param == "keep_alive"


def test_what_has_no_effect_is_named():
    request = chat.parse_chat(
        chat_body(
            n_discard=-1,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            tools=[
                {"type": "function", "function": {"name": "f", "strict": True, "examples": []}},
                {"type": "function", "function": {"name": "g", "parameters": {"properties": {"a": {"not": {}}}}}},
            ],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
                {"role": "user", "content": "hi", "mood": "good"},
            ],
        )
    )
    assert request.ignored == [
        "n_discard",
        "stream_options.continuous_usage_stats",
        "tools[].function.examples",
        "tools[].function.parameters.not",
        "messages[].content[].cache_control",
        "messages[].mood",
    ]


SAMPLED = {
    "n": 2,
    "seed": 1,
    "stop": "x",
    "temperature": 0.5,
    "top_p": 0.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "logit_bias": {"1": 1},
    "max_tokens": 7,
    "top_k": 3,
    "min_p": 0.5,
    "typical_p": 0.5,
    "top_n_sigma": 1,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "dynatemp_range": 0.5,
    "dynatemp_exponent": 2,
    "mirostat": 2,
    "mirostat_tau": 3,
    "mirostat_eta": 0.2,
    "dry_multiplier": 0.8,
    "dry_base": 2,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": [],
    "repetition_penalty": 1.5,
    "ignore_eos": True,
    "min_tokens": 3,
    "cache_prompt": False,
    "json_whitespace": "compact",
    "speculation": "off",
}
CHAT_ONLY = {
    "logprobs": True,
    "max_completion_tokens": 7,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "reasoning_effort": "low",
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking_budget": 5,
    "prediction": {"type": "content", "content": "x"},
    "add_generation_prompt": False,
}
ANSWERS = {
    "response_format": {"type": "json_object"},
    "json_schema": {"type": "string"},
    "guided_json": {"type": "string"},
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "structured_outputs": {"choice": ["a", "b"]},
}
COMPLETION_ONLY = {"best_of": 2, "logprobs": 2, "suffix": "x", "echo": True}
SEEN_BY_THE_ROUTE = {"model", "messages", "prompt", "stream", "stream_options", "priority", "keep_alive"}
NEED_ANOTHER = {"top_logprobs", "tool_choice", "parallel_tool_calls", "continue_final_message"}


def honoured(fields):
    return {name for name, use in fields.items() if use is Use.HONOURED}


def test_every_honoured_field_is_in_these_tables():
    assert honoured(CHAT.fields) == {*SAMPLED, *ANSWERS, *CHAT_ONLY, *SEEN_BY_THE_ROUTE, *NEED_ANOTHER} - {"prompt"}
    assert honoured(COMPLETION.fields) == {*SAMPLED, *ANSWERS, *COMPLETION_ONLY, *SEEN_BY_THE_ROUTE} - {"messages"}


@pytest.mark.parametrize(("name", "value"), [*SAMPLED.items(), *ANSWERS.items(), *CHAT_ONLY.items()])
def test_an_honoured_chat_field_changes_the_job(name, value):
    assert chat.parse_chat(chat_body(**{name: value})).job("j") != chat.parse_chat(chat_body()).job("j")


@pytest.mark.parametrize(
    ("base", "more"),
    [
        ({"logprobs": True}, {"top_logprobs": 3}),
        ({"tools": CHAT_ONLY["tools"]}, {"tool_choice": "none"}),
        ({"tools": CHAT_ONLY["tools"]}, {"parallel_tool_calls": False}),
        ({"messages": [{"role": "assistant", "content": "It is"}]}, {"continue_final_message": True}),
    ],
)
def test_a_field_that_needs_another_changes_the_job_beside_it(base, more):
    assert chat.parse_chat(chat_body(**base, **more)).job("j") != chat.parse_chat(chat_body(**base)).job("j")


@pytest.mark.parametrize(("name", "value"), [*SAMPLED.items(), *ANSWERS.items(), *COMPLETION_ONLY.items()])
def test_an_honoured_completion_field_changes_the_job(name, value):
    base = {"model": "m", "prompt": "x"}
    assert completions.parse_completion(base | {name: value}).jobs("j") != completions.parse_completion(base).jobs("j")


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (chat.parse_chat, chat_body(min_tokens=8, max_tokens=7)),
        (chat.parse_chat, chat_body(min_tokens=8, max_completion_tokens=7)),
        (completions.parse_completion, {"model": "m", "prompt": "x", "min_tokens": 17}),
    ],
)
def test_more_tokens_at_least_than_at_most_is_refused(parse, body):
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.param) == (400, "min_tokens")


@pytest.mark.parametrize(
    "body",
    [
        {"content": "x" * (tokens.MAX_TEXT_BYTES + 1)},
        {"prompt": "é" * (tokens.MAX_TEXT_BYTES // 2 + 1)},
        {"messages": [{"role": "user", "content": "x" * (tokens.MAX_TEXT_BYTES // 2 + 1)}] * 2},
    ],
)
def test_more_text_than_a_tokenizer_is_asked_to_read_is_refused(body):
    with pytest.raises(ApiError) as caught:
        tokens.parse_tokenize(body)
    assert (caught.value.status, caught.value.param) == (400, next(iter(body)))


def test_ignored_names_cannot_break_a_header():
    header = ignored_header(["a\r\nset-cookie: x", "ü", "x" * 5000, *(f"f{i}" for i in range(100))])
    assert header is not None
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 1000
    assert header.endswith("+87")
    assert ignored_header([]) is None
    assert ignored_header(["0", ""]) == '0, ""'


@pytest.mark.parametrize("name", [name for name, use in COMPLETION.fields.items() if use is Use.NEUTRAL_ONLY])
def test_unsupported_completion_fields_are_refused_by_name(name):
    value = "x"
    with pytest.raises(ApiError) as caught:
        completions.parse_completion({"model": "m", "prompt": "x", name: value})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(("given", "side"), [(10**310, "above"), (-(10**310), "below")])
def test_an_integer_that_no_float_can_hold_is_out_of_bounds_and_no_wrong_type(given, side):
    with pytest.raises(ApiError, match=f"Invalid 'temperature': decimal {side} ") as refused:
        chat.parse_chat(chat_body(temperature=given))
    assert refused.value.code == f"decimal_{side}_{'max' if side == 'above' else 'min'}_value"


def test_a_field_that_a_body_may_not_have_is_called_unknown_and_its_value_is_not_blamed():
    with pytest.raises(ApiError, match=r"^Unknown parameter: 'minutes'\.$") as refused:
        leases.parse_lease({"bytes": "1GiB", "minutes": 5})
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "minutes", "unknown_parameter")
