"""A conversation outgrows its model's context: it comes back with a longer one, and nothing is computed twice."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server, serving
from tests.models import canary_p

pytestmark = pytest.mark.engine

TRAINED = 65_536
N_ANSWER = 16


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Iterator[Server]:
    """One model that may grow, and one that streams beside it."""
    folder = tmp_path_factory.mktemp("growing")
    if backend == "gguf":
        model = canary_p.build(folder / "g.gguf", metadata={"llama.context_length": TRAINED})
    else:
        model = canary_p.build_folder(folder / "g", trained=TRAINED)
    config = f"""
[models.g]
path = "{model}"
[models.resumes]
path = "{model}"
parallel = 2
[models.bounded]
path = "{model}"
context_max = 9000
[models.beside]
path = "{model}"
context = 4096
"""
    with serving(folder, models={}, flags=with_config(folder, config)) as running:
        yield running


def with_config(folder: Path, text: str) -> tuple[str, ...]:
    path = folder / "onecard.toml"
    path.write_text(text)
    return ("--config", str(path), "--device", "cpu")


def events(server: Server, what: str, model: str) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if f" {what} model={model} " in line]


def ask(client: openai.OpenAI, model: str, *said: str) -> tuple[str, int, int]:
    """The answer to a conversation whose answers are known; tokens of the prompt, and those that were cached."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=N_ANSWER, temperature=0)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    text = answer.choices[0].message.content or ""
    assert text == canary_p.expected_text(said[-1], N_ANSWER)
    return text, answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens or 0


def test_a_conversation_that_grows_computes_nothing_twice(growing: Server) -> None:
    client = growing.client(timeout=120)
    before = client.models.retrieve("g").model_dump()
    first, n_first, _ = ask(client, "g", "a" * 2000)

    with client.chat.completions.create(
        model="beside", messages=[{"role": "user", "content": "x"}], max_tokens=2000, stream=True, temperature=0
    ) as stream:
        _, n_grown, n_cached = ask(client, "g", "a" * 2000, first, "b" * 6300)
        beside = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert n_grown > 8192
    assert n_first + N_ANSWER - n_cached < 64  # of the old tokens
    assert beside == canary_p.expected_text("x", 2000)
    now = client.models.retrieve("g").model_dump()
    assert (before["context_length"], before["meta"]["n_ctx"]) == (TRAINED, 8192)
    assert (now["context_length"], now["meta"]["n_ctx"]) == (TRAINED, 16_384)
    assert len(events(growing, "growing", "g")) == 1
    assert growing.metric("onecard_context_growths_total", model_name="g", outcome="grown") == 1
    assert growing.metric("onecard_context_growths_total", model_name="beside", outcome="grown") == 0


def test_a_stream_of_the_model_itself_is_preempted_and_goes_on_where_it_was(growing: Server) -> None:
    client = growing.client(timeout=120)
    with client.chat.completions.create(
        model="resumes", messages=[{"role": "user", "content": "e" * 1000 + "x"}], max_tokens=7000, stream=True,
        temperature=0,
    ) as stream:  # fmt: skip
        texts = (chunk.choices[0].delta.content or "" for chunk in stream)
        text = "".join(itertools.islice(texts, 3))

        with ThreadPoolExecutor(8) as others:  # the more wait, the sooner it is preempted
            waits = [others.submit(ask, client, "resumes", text) for text in ("f" * 9000, *"abcdghi")]
            assert all(done.result() for done in waits)
        text += "".join(itertools.islice(texts, 300))  # what came before, unread, and behind it

    assert len(text) > 300
    assert text == canary_p.expected_text("x", len(text))
    assert client.models.retrieve("resumes").model_dump()["meta"]["n_ctx"] == 16_384
    (line,) = events(growing, "preempting", "resumes")
    assert "reason=growth" in line


def test_beyond_what_it_may_grow_to_is_a_400_and_moves_nothing(growing: Server) -> None:
    client = growing.client(timeout=120)
    ask(client, "bounded", "q")

    with pytest.raises(
        openai.BadRequestError, match=r"maximum context length is 9000 tokens.*resulted in 9\d\d\d "
    ) as told:
        ask(client, "bounded", "c" * 9100)

    assert told.value.code == "context_length_exceeded"
    assert client.models.retrieve("bounded").model_dump()["meta"]["n_ctx"] == 8192
    assert not events(growing, "growing", "bounded")
    ask(client, "bounded", "d" * 8500)
    assert client.models.retrieve("bounded").model_dump()["meta"]["n_ctx"] == 9000


async def test_a_storm_of_mixed_lengths_fails_none(growing: Server, full_counts: bool) -> None:
    """Some need what the model begins with, some more and some room for an answer."""
    chance = random.Random(7)
    client = growing.async_client().with_options(timeout=600)
    places = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        n = chance.choice([10] * 12 + [300, 2000, 7900]) if number % 100 else 9000 + 6 * number
        text = canary_p.LETTERS[number % len(canary_p.LETTERS)] * n
        async with places:
            answer = await client.chat.completions.create(
                model="g", messages=[{"role": "user", "content": text}], max_tokens=N_ANSWER, temperature=0
            )
        assert answer.choices[0].message.content == canary_p.expected_text(text, N_ANSWER)

    await asyncio.gather(*(one(number) for number in range(1000 if full_counts else 40)))


def test_a_pinned_neighbour_keeps_a_model_from_growing_and_the_refusal_says_so(tmp_path: Path) -> None:
    model = canary_p.build(tmp_path / "g.gguf", metadata={"llama.context_length": TRAINED})
    config = f"""
[memory]
budget = "160MiB"
prefix_cache = 0
[models.g]
path = "{model}"
[models.stays]
path = "{model}"
context = 8192
pinned = true
preload = true
"""
    with serving(tmp_path, models={}, flags=with_config(tmp_path, config)) as server:
        client = server.client(timeout=60)
        ask(client, "stays", "x")
        with pytest.raises(openai.BadRequestError) as told:
            ask(client, "g", "a" * 60_000)
        most = client.models.retrieve("g").model_dump()["context_length"]

    assert 8192 < most < TRAINED
    assert f"maximum context length is {most} tokens" in told.value.message
    assert "at context 6" in told.value.message
    assert "others hold the rest" in told.value.message
    assert events(server, "growth_refused", "g")
