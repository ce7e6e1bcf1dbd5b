"""A layer that predicts further tokens drafts: answers are what they were, whatever comes, goes and is taken back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.engine import Engine
from backends.gguf.loading import load
from backends.messages import ChatPrompt, Generate, JsonSchema, Sampling, SpeculationMode, Store, TokenPrompt
from tests.gguf.test_draft_model import run
from tests.models import canary_mtp, canary_p
from tests.models.canary_kv import EXACT_CELLS, prompt
from tests.models.canary_p import CYCLE
from tests.specs import spec_of

pytestmark = pytest.mark.engine


def opened(path: Path, mode: SpeculationMode = "ngram", **fields: Any) -> Engine:
    given: dict[str, Any] = {"context": 512, "parallel": 3} | fields
    return load(spec_of("glm", "gguf", path, threads=1, speculation=mode, mtp=True, **given), lambda _: None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return canary_mtp.build(tmp_path_factory.mktemp("mtp") / "mtp.gguf", wrong=7)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    engine = opened(path)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """A model whose every token depends on all before it, without drafts and with those of its layer."""
    path = canary_mtp.build_mixed(tmp_path_factory.mktemp("mtp") / "mixed.gguf")
    engines = {"off": opened(path, "off", kv_type=EXACT_CELLS), "mtp": opened(path, kv_type=EXACT_CELLS)}
    yield engines
    for engine in engines.values():
        engine.close()


def job(name: str, prompt: list[int], n_tokens: int = 60, **fields: Any) -> Generate:
    given: dict[str, Any] = {"sampling": Sampling(temperature=0), "cache_prompt": False} | fields
    return Generate(name, TokenPrompt(prompt), max_tokens=n_tokens, **given)


def after(token: int, n: int = 60) -> str:
    return canary_p.expected_text(canary_p.PIECES[token].decode(), n)


def test_a_layer_that_predicts_further_tokens_drafts_them(engine: Engine, path: Path) -> None:
    told, drafted = run(engine, [job("a", CYCLE[3:9])])

    assert told[0].text() == after(CYCLE[8])
    assert drafted["mtp accepted"] > 20
    assert drafted["mtp drafted"] > drafted["mtp accepted"]
    assert engine.ready().parts["draft"] > 0


def test_streams_with_long_and_short_prompts_draft_beside_each_other(engine: Engine) -> None:
    prompts = [[CYCLE[(7 * at + n) % 300] for at in range(size)] for n, size in enumerate((2, 40, 300))]

    told, drafted = run(engine, [job(str(n), prompt) for n, prompt in enumerate(prompts)])
    again, _ = run(engine, [job("again", prompts[2][:299])])

    assert [one.text() for one in told] == [after(prompt[-1]) for prompt in prompts]
    assert again[0].text() == after(prompts[2][298])
    assert drafted["mtp accepted"] > 40


@pytest.mark.parametrize(
    ("sampling", "n_least"),
    [
        (Sampling(temperature=0), 40),
        (Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=1, logit_bias={9: 4.0}), 10),
        (Sampling(temperature=0.9, top_p=0.95, seed=7), 10),
        (Sampling(temperature=1.2, mirostat=2, mirostat_tau=4.0, seed=7, frequency_penalty=0.5), 10),
    ],
    ids=["greedy", "penalties", "choices", "mirostat"],
)
def test_an_answer_is_the_same_to_the_last_bit_whatever_the_layer_drafts(
    mixed: dict[str, Engine], sampling: Sampling, n_least: int, full_counts: bool
) -> None:
    counts = Counter[str]()
    for number in range(500 if full_counts else 2):
        n_choices = 1 if sampling.temperature == 0 else 2
        asked = [
            job(f"{at}", prompt(number, 20 + 61 * at), 40, sampling=sampling, n=n_choices, logprobs=2, ignore_eos=True)
            for at in range(3 - n_choices)
        ]

        plain, told = run(mixed["off"], asked)[0], run(mixed["mtp"], asked)
        counts += told[1]

        for one, other in zip(plain, told[0], strict=True):
            for index in range(n_choices):
                assert other.logprobs(index) == one.logprobs(index)
                assert len(one.logprobs(index)) == 40
    assert counts["mtp drafted"] > counts["mtp accepted"] > n_least


def test_a_prefix_that_comes_back_from_the_cache_is_followed_from_its_end(path: Path, tmp_path: Path) -> None:
    spec = spec_of("glm", "gguf", path, context=512, parallel=2, threads=1, speculation="ngram", mtp=True)
    engine = load(msgspec.structs.replace(spec, store=Store(str(tmp_path), 32 << 20)), lambda _: None)
    head = [CYCLE[(5 * at) % 300] for at in range(100)]

    first, _ = run(engine, [job("first", head, cache_prompt=True)])
    told, drafted = run(engine, [job("again", [*head, CYCLE[4]], cache_prompt=True)])
    engine.close()

    assert told[0].started.cached_tokens > 60
    assert [first[0].text(), told[0].text()] == [after(head[-1]), after(CYCLE[4])]
    assert drafted["mtp accepted"] > 10


def test_a_schema_holds_for_what_is_drafted(engine: Engine, path: Path) -> None:
    asked = ChatPrompt([{"role": "user", "content": "a"}])
    schema = JsonSchema('{"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2, "maxItems": 2}')
    sampling = Sampling(temperature=0, logit_bias={34: 40.0})
    constrained = Generate("j", asked, sampling=sampling, max_tokens=120, constraint=schema)
    plain = opened(path, "off")

    (told, drafted), expected = run(engine, [constrained]), run(plain, [constrained])[0]
    plain.close()

    assert told[0].text() == expected[0].text()
    assert [len(text) <= 30 for text in json.loads(told[0].text())] == [True, True]
    assert drafted["mtp accepted"] > 20


def test_a_file_without_such_a_layer_is_served_without(canary_path: Path) -> None:
    engine = opened(canary_path, "auto")
    assert engine.ready().facts.speculation == "auto"
    engine.close()
