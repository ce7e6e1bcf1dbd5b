"""Adapters as model names over HTTP, on both backends: each answers as itself, whatever else is answered."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import openai
import pytest

from tests.adapters.conftest import Live
from tests.e2e.server import until

pytestmark = pytest.mark.engine

NAMES = ("demo", "demo:pirate", "demo:clerk")
QUESTION = "What is the capital of France?"
WHO = f"{QUESTION} And 0?"
STAYING, COMING = ("demo", "demo:pirate"), "demo:clerk"
LONG = "Please repeat after me, one by one and in this order, " + "the words that I am going to tell you now. " * 6


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content or ""


def test_every_adapter_is_a_model_that_says_what_it_is(live: Live) -> None:
    until(lambda: live.models()["demo"]["state"] == "ready", within_s=60)
    models = live.models()

    assert list(models) == ["demo", "demo:pirate", "demo:clerk", "demo:nan", "demo:gone"]
    assert [models[name]["parent"] for name in models] == [None, *["demo"] * 4]
    assert models["demo:pirate"]["aliases"] == ["gpt-4o:pirate"]
    assert [models[name]["unusable"] for name in NAMES] == [None] * 3
    assert "(NaN or infinite)" in models["demo:nan"]["unusable"]
    assert "there is no file or folder" in models["demo:gone"]["unusable"]
    assert any("'gone' is not served" in remark for remark in models["demo"]["remarks"])
    (status,) = live.server.get("/v1/status")["models"]
    assert status["parts"]["adapters"] > 0
    assert live.server.client().models.retrieve("demo:clerk").id == "demo:clerk"


def test_one_that_is_not_served_is_refused_by_name_and_its_base_goes_on(live: Live) -> None:
    for name in ("nan", "gone"):
        with pytest.raises(openai.APIStatusError, match=f"adapter '{name}' is not served") as refused:
            live.ask(f"demo:{name}", QUESTION)
        assert refused.value.status_code == 503
    with pytest.raises(openai.NotFoundError, match="`demo:pirate`"):
        live.ask("demo:other", QUESTION)
    with pytest.raises(openai.NotFoundError):
        live.ask("other:pirate", QUESTION)
    assert "Paris" in text_of(live.ask("demo", QUESTION))


def test_answers_of_many_at_once_are_those_of_each_alone(live: Live) -> None:
    asked = [(name, f"{QUESTION} And {n}?") for n in range(2) for name in (*NAMES, "gpt-4o:pirate")]
    alone = [live.ask(*one) for one in asked]

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda one: live.ask(*one), asked))

    assert [text_of(answer) for answer in together] == [text_of(answer) for answer in alone]
    assert [answer.model for answer in alone[:4]] == [*NAMES, "demo:pirate"]
    texts = {name: text_of(answer) for (name, _), answer in zip(asked[:4], alone[:4], strict=True)}
    assert len(set(texts.values())) == 3, "each adapter changes the answer, and an alias does not"


def test_cached_prefixes_are_the_adapters_own(live: Live) -> None:
    def cached(model: str) -> int:
        usage = live.ask(model, LONG, max_tokens=1).usage
        return int(usage.prompt_tokens_details.cached_tokens)

    assert [cached(name) for name in NAMES] == [0, 0, 0]
    assert all(cached(name) > 40 for name in NAMES)


def test_several_choices_and_a_stream_are_of_the_adapter(live: Live) -> None:
    alone = text_of(live.ask("demo:clerk", QUESTION))

    several = live.ask("demo:clerk", QUESTION, n=3)
    streamed: Any = live.ask("demo:clerk", QUESTION, stream=True)
    chunks = list(streamed)

    assert [choice.message.content for choice in several.choices] == [alone] * 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == alone
    assert {chunk.model for chunk in chunks} == {"demo:clerk"}


def test_a_reload_adds_and_removes_adapters(live: Live) -> None:
    before = text_of(live.ask("demo:pirate", QUESTION))
    live.configure("pirate")
    told = live.reload()
    assert told["changed"] == {"demo": ["adapters"]}
    assert list(live.models()) == ["demo", "demo:pirate"]
    with pytest.raises(openai.NotFoundError):
        live.ask("demo:clerk", QUESTION)
    assert text_of(live.ask("demo:pirate", QUESTION)) == before

    live.adapters["second"] = live.adapters["pirate"]
    live.configure("second", "clerk")
    live.reload()
    assert text_of(live.ask("demo:second", QUESTION)) == before


def test_a_base_whose_only_adapter_is_refused_answers_as_ever(live: Live) -> None:
    live.configure()
    live.reload()
    alone = text_of(live.ask("demo", QUESTION))
    live.configure("nan")
    live.reload()
    assert text_of(live.ask("demo", QUESTION)) == alone
    assert "Paris" in alone


def asked_until(live: Live, over: Event, name: str, wanted: str) -> tuple[int, int]:
    """How many answers were right, and how many refused. Raises AssertionError for one that is another's."""
    right = refused = 0
    while not over.is_set():
        try:
            answer = text_of(live.ask(name, WHO))
        except openai.NotFoundError as error:
            if name != COMING or COMING not in error.message:
                raise
            refused += 1
        else:
            assert answer == wanted, name
            right += 1
    return right, refused


def test_answers_stay_exact_while_adapters_come_and_go(live: Live, full_counts: bool) -> None:
    live.configure("pirate", "clerk")
    live.reload()
    wanted: Mapping[str, str] = {name: text_of(live.ask(name, WHO)) for name in (*STAYING, COMING)}
    assert len(set(wanted.values())) == 3
    over, names = Event(), [*STAYING, COMING] * 2

    with ThreadPoolExecutor(len(names)) as threads:
        counts = [threads.submit(asked_until, live, over, name, wanted[name]) for name in names]
        try:
            for _ in range(10 if full_counts else 1):
                for there in (("pirate",), ("pirate", "clerk")):
                    live.configure(*there)
                    assert live.reload()["changed"] == {"demo": ["adapters"]}
                    assert text_of(live.ask("demo:pirate", WHO)) == wanted["demo:pirate"]
        finally:
            over.set()
    found = [count.result() for count in counts]

    assert all(right for right, _ in found)
    assert any(refused for _, refused in found), "it was asked for while it was not there"
    assert {name: text_of(live.ask(name, WHO)) for name in wanted} == wanted
