"""A layer that predicts further tokens drafts: answers are what they were, whatever comes, goes and is taken back."""

from __future__ import annotations

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


def job(name: str, prompt: list[int], n: int = 60, **fields: Any) -> Generate:
    given: dict[str, Any] = {"sampling": Sampling(temperature=0), "cache_prompt": False} | fields
    return Generate(name, TokenPrompt(prompt), max_tokens=n, **given)


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


def test_sampled_answers_under_a_seed_are_those_without_drafts(engine: Engine, path: Path) -> None:
    plain = opened(path, "off")
    bias = {token: 70.0 + 3 * (token % 3) for token in CYCLE[:9]}
    asked = [
        job(str(n), [CYCLE[n]], sampling=Sampling(temperature=1, seed=n, logit_bias=bias), n=2) for n in range(1, 3)
    ]

    for one in asked:
        told, expected = run(engine, [one])[0], run(plain, [one])[0]
        assert [told[0].text(index) for index in range(2)] == [expected[0].text(index) for index in range(2)]
    plain.close()


def test_a_prefix_that_comes_back_from_the_cache_is_followed_from_its_end(path: Path, tmp_path: Path) -> None:
    spec = spec_of("glm", "gguf", path, context=512, parallel=2, threads=1, speculation="ngram", mtp=True)
    engine = load(msgspec.structs.replace(spec, store=Store(str(tmp_path), 32 << 20)), lambda _: None)
    prompt = [CYCLE[(5 * at) % 300] for at in range(100)]

    first, _ = run(engine, [job("first", prompt, cache_prompt=True)])
    told, drafted = run(engine, [job("again", [*prompt, CYCLE[4]], cache_prompt=True)])
    engine.close()

    assert told[0].started.cached_tokens > 60
    assert [first[0].text(), told[0].text()] == [after(prompt[-1]), after(CYCLE[4])]
    assert drafted["mtp accepted"] > 10


def test_a_schema_holds_for_what_is_drafted(engine: Engine, path: Path) -> None:
    asked = ChatPrompt([{"role": "user", "content": "a"}])
    schema = JsonSchema('{"type": "array", "items": {"enum": ["ab", "cd"]}, "minItems": 2, "maxItems": 3}')
    constrained = Generate("j", asked, sampling=Sampling(temperature=0), max_tokens=60, constraint=schema)
    plain = opened(path, "off")

    told, expected = run(engine, [constrained])[0], run(plain, [constrained])[0]
    plain.close()

    assert told[0].text() == expected[0].text() != ""


def test_a_file_without_such_a_layer_is_served_without(canary_path: Path) -> None:
    engine = opened(canary_path, "auto")
    assert engine.ready().facts.speculation == "auto"
    engine.close()
