"""`/infill` as llama.vim and llama.vscode use it, and what they probe, over a real socket and the fake engine."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from backends.messages import Delta, Event, Failed, Finished, Started
from server.output.line_limits import LineLimits
from server.pool.stream import Stream
from server.routes.running import limited

LLAMA_VIM: dict[str, Any] = {
    "input_prefix": "def f(",
    "input_suffix": "\n",
    "input_extra": [{"text": "x = 1\n", "time": 17, "filename": "a.py"}],
    "prompt": "a, ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.90,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
    "model": "fake",
}


def fill(server, prefix: str, suffix: str = "", **fields):
    return server.post("/infill", {"model": "fake", "input_prefix": prefix, "input_suffix": suffix, **fields})


def test_llama_vim_gets_the_fields_it_asks_for(server):
    answer = server.post("/infill", LLAMA_VIM)

    assert answer.status == 200
    found = answer.json()
    assert set(found) == set(LLAMA_VIM["response_fields"])
    assert found["content"] == "echo: def f(a, |\n"
    assert found["timings/predicted_n"] == 4
    assert found["truncated"] is False
    assert answer.headers["x-onecard-ignored"] == "samplers"


def test_a_whole_answer_has_llama_cpps_shape(server):
    found = fill(server, "a", "b").json()

    assert (found["content"], found["stop"], found["stop_type"]) == ("echo: a|b", True, "eos")
    assert found["model"] == "fake"
    assert (found["tokens_evaluated"], found["tokens_predicted"]) == (2, 2)
    assert found["generation_settings"]["n_ctx"] == 4096
    assert fill(server, "!long 50 ", n_predict=3).json()["stop_type"] == "limit"


def test_a_stream_has_llama_cpps_shape(server):
    body = fill(server, "a", "b", stream=True).body.decode()

    blocks = body.strip().split("\n\n")
    assert all(block.startswith("data: {") for block in blocks)
    objects = [json.loads(block[6:]) for block in blocks]
    assert "".join(found["content"] for found in objects) == "echo: a|b"
    assert [found["stop"] for found in objects] == [False] * (len(objects) - 1) + [True]
    assert objects[-1]["timings"]["predicted_n"] == 2


def test_nothing_to_predict_prepares_the_prompt_and_says_nothing(server):
    ahead = {"n_predict": 0, "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "samplers": [], "temperature": 0.0}

    found = fill(server, "", "", input_extra=[{"text": "x", "filename": "a.py"}], **ahead)

    assert (found.status, found.json()["content"], found.json()["tokens_predicted"]) == (200, "", 0)
    assert fill(server, "", "", **ahead, response_fields=[""]).json() == {}


def test_the_time_limit_ends_an_answer(server):
    """The words of this engine hold no line ends, so twice the limit is the end."""
    begin = time.monotonic()
    found = fill(server, "!slow 50 1000 ", t_max_predict_ms=200).json()

    assert time.monotonic() - begin < 25, "all of it takes 50 s"
    assert found["stop_type"] == "limit"
    assert 2 <= found["tokens_predicted"] <= 20
    assert found["content"].startswith("0 1 2")
    server.wait_idle()


async def test_a_prompt_that_takes_too_long_is_given_up():
    cancelled: list[str] = []
    stream = Stream("m", "j", cancel=cancelled.append, loading=lambda: False)
    stream.push(Started(id="j", prompt_tokens=7, cached_tokens=2))

    events = [event async for event in limited(stream, LineLimits(prompt_s=0.01))]

    assert events == [
        Started(id="j", prompt_tokens=7, cached_tokens=2),
        Delta(id="j", index=0, text="", n_tokens=0, finish_reason="length"),
        Finished(id="j", prompt_tokens=7, cached_tokens=2),
    ]
    assert cancelled == ["j"]


async def test_a_job_that_ends_in_time_is_not_touched():
    cancelled: list[str] = []
    stream = Stream("m", "j", cancel=cancelled.append, loading=lambda: False)
    told: list[Event] = [Started(id="j", prompt_tokens=7), Failed(id="j", code="worker_crashed", message="it crashed")]
    for event in told:
        stream.push(event)

    assert [event async for event in limited(stream, LineLimits(prompt_s=5, predict_s=5, indent=2))] == told
    assert cancelled == []


def test_indentation_ends_an_answer(server):
    found = fill(server, "!say x\n  y\nz\n", n_indent=2).json()

    assert (found["content"], found["stop_type"]) == ("x\n  y\n", "limit")
    assert found["has_new_line"] is True


WRONG = [
    ({"input_prefix": 3}, "input_prefix"),
    ({"input_suffix": None}, "input_suffix"),
    ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
    ({"input_extra": "x"}, "input_extra"),
    ({"prompt": [1, 2]}, "prompt"),
    ({"n_predict": -2}, "n_predict"),
    ({"n_predict": 2**31}, "n_predict"),
    ({"n_indent": -1}, "n_indent"),
    ({"t_max_predict_ms": 1.5}, "t_max_predict_ms"),
    ({"t_max_prompt_ms": "1"}, "t_max_prompt_ms"),
    ({"temperature": 3}, "temperature"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"stop": [""]}, "stop[0]"),
    ({"response_fields": [1]}, "response_fields[0]"),
    ({"grammar": "root ::= root"}, "grammar"),
    ({"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
    ({"input_prefix": "x" * 5000}, "input_prefix"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[f"{i} {param}" for i, (_, param) in enumerate(WRONG)])
def test_wrong_values_are_refused_with_their_name(server, fields, param):
    answer = server.post("/infill", {"model": "fake", "input_prefix": "a", "input_suffix": "b", **fields})

    assert (answer.status, answer.error["param"]) == (400, param)


def test_an_editor_that_names_no_model_gets_the_one_that_is_meant(server):
    body = {"input_prefix": "a", "input_suffix": "b", "model": ""}

    assert server.post("/infill?model=fake", body).status == 200
    refused = server.post("/infill", body)
    assert (refused.status, refused.error["param"]) == (400, "model")
    assert "alias 'infill'" in refused.error["message"]


def test_props_tell_the_context_and_load_nothing(server):
    one = server.get("/props?model=org/small:Q8").json()
    assert one["default_generation_settings"]["n_ctx"] == 64
    assert (one["total_slots"], one["model_alias"]) == (2, "org/small:Q8")
    assert server.get("/props").json()["role"] == "router"
    assert server.get("/props?model=nope").status == 404
    assert server.get("/models").json() == server.get("/v1/models").json()
