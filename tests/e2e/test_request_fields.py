"""What a request field says is what the model does, on every surface that honours it, whichever library computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from server.routes.table import SURFACES
from server.schemas.surface import Use
from tests.e2e import test_answers, test_conversations, test_logprobs, test_predictions, test_sdk, test_surfaces
from tests.e2e.server import Server
from tests.models import canary_p

pytestmark = pytest.mark.engine

N = 12
GOLDEN = canary_p.expected_text("a", N)
BEHIND_Z = canary_p.expected_text("Z", N)
FLAT = {str(token): 60 for token in range(32, 127)}
"""Many tokens about as likely as the best one, which has a logit of 64."""
Z = str(ord("Z"))


@dataclass(frozen=True)
class Surface:
    """How one path is asked to continue the canary's `a`, and where its text is."""

    body: dict[str, Any]
    limit: str
    text: Callable[[Any], str]
    renamed: dict[str, str]
    first: str = GOLDEN


USER = [{"role": "user", "content": "a"}]
PATHS = {
    "/v1/completions": Surface({"prompt": "a"}, "max_tokens", lambda a: a["choices"][0]["text"], {}),
    "/v1/chat/completions": Surface(
        {"messages": USER}, "max_completion_tokens", lambda a: a["choices"][0]["message"]["content"], {}
    ),
    "/v1/responses": Surface(
        {"input": "a"},
        "max_output_tokens",
        lambda a: "".join(part["text"] for item in a["output"] for part in item["content"]),
        {},
    ),
    "/v1/messages": Surface(
        {"messages": USER},
        "max_tokens",
        lambda a: "".join(block["text"] for block in a["content"]),
        {"stop": "stop_sequences"},
    ),
    "/infill": Surface(
        {"input_prefix": "def f(", "input_suffix": "): pass"},
        "n_predict",
        lambda a: a["content"],
        {"repetition_penalty": "repeat_penalty"},
        first=canary_p.expected_infill(N),
    ),
}
HONOURED = {surface.path: {n for n, use in surface.fields.items() if use is Use.HONOURED} for surface in SURFACES}
ALWAYS_FIRST = "the likeliest text"
SAMPLED: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 0}, ALWAYS_FIRST),
    "top_k": ({"temperature": 2, "logit_bias": FLAT, "top_k": 1}, ALWAYS_FIRST),
    "top_p": ({"temperature": 2, "logit_bias": FLAT, "top_p": 0.01}, ALWAYS_FIRST),
    "min_p": ({"temperature": 2, "logit_bias": FLAT, "min_p": 0.99}, ALWAYS_FIRST),
    "top_n_sigma": ({"temperature": 2, "logit_bias": FLAT, "top_n_sigma": 0.1}, ALWAYS_FIRST),
    "mirostat": ({"temperature": 2, "logit_bias": FLAT, "mirostat": 2, "mirostat_tau": 0}, ALWAYS_FIRST),
    "mirostat_tau": ({"temperature": 2, "logit_bias": FLAT, "mirostat": 2, "mirostat_tau": 0}, ALWAYS_FIRST),
    "logit_bias": ({"temperature": 0, "logit_bias": {Z: 100}}, "Z" * N),
    "presence_penalty": ({"temperature": 0, "logit_bias": {Z: 65}, "presence_penalty": 2}, "Z" + BEHIND_Z[: N - 1]),
    "frequency_penalty": (
        {"temperature": 0, "logit_bias": {Z: 66.5}, "frequency_penalty": 1},
        "ZZZ" + BEHIND_Z[: N - 3],
    ),
    "repetition_penalty": (
        {"temperature": 0, "logit_bias": {Z: 65}, "repetition_penalty": 1.1},
        "Z" + BEHIND_Z[: N - 1],
    ),
}
"""A field, what is asked with it, and the text that comes: without the field it would be another."""
_REPEATS: dict[str, Any] = {"temperature": 0, "logit_bias": {Z: 65}, "dry_multiplier": 2}
_SPREAD: dict[str, Any] = {"temperature": 2, "logit_bias": FLAT, "seed": 5}
CHANGED: dict[str, tuple[dict[str, Any], Any]] = {
    "typical_p": (_SPREAD, 0.1),
    "xtc_probability": (_SPREAD | {"xtc_threshold": 0.05}, 1),
    "xtc_threshold": (_SPREAD | {"xtc_probability": 1}, 0.001),
    "dynatemp_range": (_SPREAD | {"temperature": 1, "dynatemp_exponent": 5}, 1),
    "dynatemp_exponent": (_SPREAD | {"temperature": 1, "dynatemp_range": 1}, 5),
    "mirostat_eta": (_SPREAD | {"mirostat": 2, "mirostat_tau": 3}, 1),
    "dry_multiplier": ({"temperature": 0, "logit_bias": {Z: 65}}, 2),
    "dry_base": (_REPEATS | {"logit_bias": {Z: 68}}, 10),
    "dry_allowed_length": (_REPEATS, 5),
    "dry_penalty_last_n": (_REPEATS, 0),
    "dry_sequence_breakers": (_REPEATS, ["Z"]),
}
"""A field, what is asked beside it, and a value that changes the text."""
BESIDE: dict[str, Any] = {
    "cache_prompt": test_conversations.test_a_conversation_survives_the_swap_of_its_model,
    "prompt": test_sdk.test_a_completion_continues_a_text,
    "suffix": test_sdk.test_a_suffix_is_filled_in_where_the_vocabulary_can,
    "messages": test_sdk.test_a_conversation_of_two_turns_is_kept,
    "stream": test_sdk.test_a_streamed_chat_gives_the_same_text,
    "stream_options": test_sdk.test_a_streamed_chat_gives_the_same_text,
    "chat_template_kwargs": test_sdk.test_thinking_is_apart_from_the_answer_when_asked_for,
    "tools": test_sdk.test_a_tool_is_called_and_its_result_used,
    "tool_choice": test_answers.test_a_call_that_is_required_is_made,
    "parallel_tool_calls": test_answers.test_a_call_that_is_required_is_made,
    "reasoning_effort": test_answers.test_reasoning_comes_first_and_apart_and_is_counted,
    "thinking_budget": test_answers.test_reasoning_stops_at_its_budget,
    "response_format": test_answers.test_a_streamed_answer_under_a_schema_is_the_same_as_a_whole_one,
    "json_whitespace": test_answers.test_white_space_in_json_is_left_out_where_that_is_asked_for,
    "prediction": test_predictions.test_a_prediction_changes_no_answer_and_what_came_of_it_is_counted,
    "speculation": test_predictions.test_a_request_without_drafts_counts_none,
    "guided_regex": test_answers.test_text_completions_take_forms_too,
    "guided_choice": test_answers.test_text_completions_take_forms_too,
    "best_of": test_answers.test_the_best_of_several_is_the_likeliest,
    "logprobs": test_logprobs.test_joined_the_bytes_of_the_tokens_are_the_content,
    "top_logprobs": test_logprobs.test_joined_the_bytes_of_the_tokens_are_the_content,
    "input": test_surfaces.test_a_response_calls_a_tool_and_reads_its_result,
    "previous_response_id": test_surfaces.test_a_conversation_goes_on_by_its_id,
    "reasoning": test_surfaces.test_reasoning_and_a_schema_on_both_surfaces,
    "text": test_surfaces.test_reasoning_and_a_schema_on_both_surfaces,
    "thinking": test_surfaces.test_reasoning_and_a_schema_on_both_surfaces,
    "output_config": test_surfaces.test_reasoning_and_a_schema_on_both_surfaces,
    "stop_sequences": test_surfaces.test_a_stop_sequence_is_told,
    "input_prefix": test_surfaces.test_an_infill_looks_at_other_files_as_far_as_there_is_room,
    "input_suffix": test_surfaces.test_an_infill_looks_at_other_files_as_far_as_there_is_room,
    "input_extra": test_surfaces.test_an_infill_looks_at_other_files_as_far_as_there_is_room,
    "t_max_predict_ms": test_surfaces.test_an_infill_keeps_its_time_limits,
    "t_max_prompt_ms": test_surfaces.test_an_infill_keeps_its_time_limits,
}
"""Fields that another test of this folder asks a real model about."""
BY_THE_SERVER_ALONE = {
    "model", "priority", "keep_alive", "include", "store", "metadata", "truncation", "n_indent", "response_fields",
    "thread", "context_management",
}  # fmt: skip
"""Fields that no engine sees, for tests over the tests' own engine."""
ALIKE = {
    "structured_outputs": "response_format",
    "json_schema": "response_format",
    "guided_json": "response_format",
    "output_format": "output_config",
    "instructions": "messages",
    "system": "messages",
    "repeat_penalty": "repetition_penalty",
}
"""Other spellings, of which the server makes the same job."""


def ask(server: Server, path: str, *, n_tokens: int = N, **fields: Any) -> Any:
    """The answer of a surface to the canary's `a`, asked for so many tokens."""
    surface = PATHS[path]
    named = {surface.renamed.get(name, name): value for name, value in fields.items()}
    body = {"model": "canary", **surface.body, surface.limit: n_tokens, **named}
    reply = httpx2.post(f"{server.url}{path}", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def asked(names: set[str] | dict[str, Any]) -> list[Any]:
    """Every surface with every one of these fields that it honours."""
    return [
        pytest.param(path, name, id=f"{path[1:]} {name}")
        for path, surface in PATHS.items()
        for name in sorted(names)
        if surface.renamed.get(name, name) in HONOURED[path]
    ]


@pytest.mark.parametrize(("path", "name"), asked(SAMPLED))
def test_a_field_of_sampling_does_what_it_says(server: Server, path: str, name: str) -> None:
    fields, text = SAMPLED[name]
    offered = {key: value for key, value in fields.items() if PATHS[path].renamed.get(key, key) in HONOURED[path]}

    answer = PATHS[path].text(ask(server, path, **offered))

    assert answer == (PATHS[path].first if text is ALWAYS_FIRST else text)


@pytest.mark.parametrize("name", CHANGED)
def test_a_field_of_sampling_changes_what_another_does(server: Server, name: str) -> None:
    beside, value = CHANGED[name]

    without, with_it = (ask(server, "/v1/completions", **beside, **more) for more in ({}, {name: value}))

    assert PATHS["/v1/completions"].text(without) != PATHS["/v1/completions"].text(with_it)


@pytest.mark.parametrize(("path", "name"), asked({"seed"}))
def test_a_seed_repeats_what_was_drawn(server: Server, path: str, name: str) -> None:
    drawn = [
        PATHS[path].text(ask(server, path, temperature=2, logit_bias=FLAT, **{name: seed}))
        for seed in (7, 7, 8, -1, -1)
    ]

    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[3] == drawn[4]


@pytest.mark.parametrize(("path", "name"), asked({"stop"}))
def test_a_stop_string_ends_the_text_before_it(server: Server, path: str, name: str) -> None:
    first = PATHS[path].first

    fields: dict[str, Any] = {name: ["never", first[5:8]]}
    assert PATHS[path].text(ask(server, path, temperature=0, **fields)) == first[:5]


@pytest.mark.parametrize("path", PATHS)
def test_the_longest_answer_is_as_long_as_asked(server: Server, path: str) -> None:
    assert PATHS[path].text(ask(server, path, n_tokens=5, temperature=0)) == PATHS[path].first[:5]


@pytest.mark.parametrize("fields", [{"min_tokens": 5}, {"ignore_eos": True}])
def test_the_end_can_be_forbidden(server: Server, fields: dict[str, Any]) -> None:
    ended: Any = {"prompt": canary_p.END_OF_STREAM, "temperature": 0}

    alone, longer = (ask(server, "/v1/completions", **ended, **more) for more in ({}, fields))

    assert alone["usage"]["completion_tokens"] == 1
    assert longer["usage"]["completion_tokens"] >= 5


def test_several_choices_and_an_echo_have_the_models_text(server: Server) -> None:
    answer = ask(server, "/v1/completions", temperature=0, prompt=["xa", "yZ"], echo=True, n=2)

    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["xa" + GOLDEN] * 2 + ["yZ" + BEHIND_Z] * 2


def test_the_last_message_is_continued_where_that_is_asked_for(server: Server) -> None:
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Z"}]

    chat = ask(server, "/v1/chat/completions", temperature=0, messages=begun, continue_final_message=True)
    message = ask(server, "/v1/messages", temperature=0, messages=begun)
    bare = ask(server, "/v1/chat/completions", temperature=0, add_generation_prompt=False)

    assert PATHS["/v1/chat/completions"].text(chat) == PATHS["/v1/messages"].text(message) == BEHIND_Z
    assert PATHS["/v1/chat/completions"].text(bare) == canary_p.expected_text("\n", N)


def test_every_honoured_field_is_asked_of_a_real_model_or_never_seen_by_one() -> None:
    here = {*SAMPLED, *CHANGED, "seed", "stop", "min_tokens", "ignore_eos", "n", "echo", "max_tokens"}
    here |= {"continue_final_message", "add_generation_prompt"}
    here |= {surface.limit for surface in PATHS.values()}

    assert {name for path in PATHS for name in HONOURED[path]} == {*here, *BESIDE, *BY_THE_SERVER_ALONE, *ALIKE}


@pytest.mark.parametrize("path", [path for path in PATHS if "min_tokens" in HONOURED[path]])
def test_more_tokens_at_least_than_there_is_room_for_are_refused_at_once(server: Server, path: str) -> None:
    for least in (2**31 - 1, 100_000):
        body = {"model": "canary", **PATHS[path].body, "min_tokens": least}
        reply = httpx2.post(f"{server.url}{path}", json=body, timeout=60)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "min_tokens")
