"""The real model from the package index, beside a real encoder: what the toy proves of plumbing, on sense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from server.settings.builtin import built_in_path
from tests.e2e.server import Server, serving
from tests.embeddings.models import minilm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(built_in_path("smollm2") is None, reason="the package index did not give smollm2"),
]

SYSTEM: Any = {"role": "system", "content": "You are a helpful assistant."}
FRANCE: Any = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
CITY: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome", "Berlin"]}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
FILLER = "The river runs past the old mill and the children play on its bank. "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: dict[str, Path | str] = {"smollm2": "smollm2", "minilm": minilm()}
    with serving(tmp_path_factory.mktemp("real"), models=models, flags=("--parallel", "1")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client(timeout=300.0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "smollm2", "messages": FRANCE, "temperature": 0, **fields})


def onecard(server: Server, *arguments: str) -> Any:
    """A command's JSON; it asks this server, if any."""
    command = [sys.executable, "-m", "server.cli", *arguments, "--json"]
    env = {**os.environ, "ONECARD_URL": server.url}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_knows_what_it_is_asked_and_streams_it(client: openai.OpenAI) -> None:
    chunks = [chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True, max_tokens=24)]
    assert "Paris" in "".join(chunks)
    assert len(chunks) > 1


def test_it_answers_under_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": CITY}}
    answer = json.loads(ask(client, response_format=form).choices[0].message.content)
    assert (answer["city"], type(answer["is_capital"])) == ("Paris", bool)


def test_it_calls_a_tool_that_it_has_to(client: openai.OpenAI) -> None:
    (choice,) = ask(client, tools=[WEATHER], tool_choice="required").choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert set(json.loads(call.function.arguments)) == {"city", "is_capital"}


def test_a_long_context_is_read_whole_and_kept(client: openai.OpenAI, full_counts: bool) -> None:
    """4k tokens take both cores a minute; a quarter of them is still several steps of a prompt."""
    n_times = 250 if full_counts else 60
    prompt: Any = [{"role": "user", "content": f"{FILLER * n_times}\nWhat is the capital of France?"}]
    first, second = (ask(client, messages=prompt, max_tokens=8).usage for _ in range(2))
    assert 14 * n_times < first.prompt_tokens < 4096
    assert second.prompt_tokens_details.cached_tokens > 0.9 * first.prompt_tokens


def test_vectors_of_like_texts_are_near(client: openai.OpenAI) -> None:
    texts = ["How do I bake bread?", "A recipe for a loaf", "The stock market fell today"]
    vectors = [
        np.asarray(one.embedding)
        for one in client.embeddings.create(model="minilm", input=texts, encoding_format="float").data
    ]
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_its_report_card_is_one_of_real_text(server: Server, tmp_path: Path, full_counts: bool) -> None:
    if not full_counts:
        pytest.skip("a minute of both cores; --full-counts measures it")
    flags = ("--to", "Q2_K", "--requantize", "--report", "--windows", "1", "--output", str(tmp_path))
    lines = onecard(server, "quantize", "smollm2", *flags)["report"]["lines"]
    source, q2 = (line["scores"]["quality"] for line in lines)
    assert 5 < source["perplexity"] < 60
    assert 0.01 < q2["kl_mean"] < 1
    assert 0.5 < q2["agreement"] < 1


def test_it_is_measured(server: Server) -> None:
    flags = ("--parallel", "1", "--generate", "8", "--rounds", "1", "--no-bare", "--url", server.url)
    (row,) = onecard(server, "bench", "smollm2", *flags)["rows"]
    assert row["tokens_per_s"] > 0


def test_its_plan_is_told_by_its_name(server: Server) -> None:
    plan = onecard(server, "fit", "smollm2", "--context", "4096", "--budget", "2GiB")
    assert (plan["fits"], plan["plan"]["context"], plan["backend"]) == (True, 4096, "gguf")
