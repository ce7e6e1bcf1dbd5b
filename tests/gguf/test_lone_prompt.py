"""A step that computes one prompt ends early with its job, and leaves the cells as they were before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.engine import Engine
from backends.generation.lone_prompt import LonePrompt
from backends.generation.sequence import Phase
from backends.messages import Generate, KvLayout, Sampling, TokenPrompt
from tests.gguf.driver import Outcome, run, step_until_idle
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, prompt
from tests.specs import spec_of

pytestmark = pytest.mark.engine

N_PROMPT = 600


@pytest.fixture(scope="module", params=["split", "unified"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = canary_kv.build(tmp_path_factory.mktemp("lone") / "model.gguf", "full")
    layout: KvLayout = request.param
    fields: dict[str, Any] = {"kv_layout": layout, "kv_tokens": 4096 if layout == "unified" else 0}
    spec = spec_of("canary", "gguf", path, context=2048, threads=1, kv_type=EXACT_CELLS, **fields)
    engine = registry.engine_of("gguf")(spec, lambda _: None)
    yield engine
    engine.close()


def asked(name: str, tokens: list[int]) -> Generate:
    sampling = Sampling(temperature=0)
    return Generate(name, TokenPrompt(tokens), max_tokens=16, sampling=sampling, logprobs=2, cache_prompt=False)


def interrupted(engine: Engine, name: str, over: threading.Event) -> None:
    while not over.is_set():
        engine.interrupt(name)


def test_a_pass_that_was_stopped_is_computed_again_to_the_last_bit(engine: Any) -> None:
    (plain,) = run(engine, [asked("plain", prompt(3, N_PROMPT))])
    outcome = Outcome(engine.add(engine.prepare(asked("a", prompt(3, N_PROMPT)))))
    used = []

    for _ in range(3):
        engine._context.stop_flag[0] = 1
        step = engine.step()
        outcome.events += step.events
        used.append((step.n_prefill, step.kv_used))
    step_until_idle(engine, {"a": outcome})

    assert used == [(0, 0)] * 3
    assert outcome.logprobs() == plain.logprobs()


def test_a_job_that_is_cancelled_in_the_middle_of_its_prompt_leaves_nothing_behind(engine: Engine) -> None:
    (plain,) = run(engine, [asked("plain", prompt(5, N_PROMPT))])
    n_stopped = 0
    for number in range(3):
        engine.add(engine.prepare(asked("gone", prompt(5, N_PROMPT + number))))
        over = threading.Event()
        other = threading.Thread(target=interrupted, args=(engine, "gone", over))
        other.start()
        n_stopped += engine.step().n_prefill == 0
        over.set()
        other.join()
        engine.cancel("gone")
        (told,) = run(engine, [asked("next", prompt(5, N_PROMPT))])

        assert told.logprobs() == plain.logprobs()
    assert n_stopped > 0


def test_only_the_prompt_that_is_computed_alone_is_interrupted() -> None:
    flag = np.zeros(2, np.uint8)
    lone, rows = LonePrompt(flag), SimpleNamespace(shares=[SimpleNamespace(sequence=0)])
    sequences: list[Any] = [
        SimpleNamespace(phase=phase, request=SimpleNamespace(job=SimpleNamespace(id=name)))
        for phase, name in [(Phase.PREFILL, "a"), (Phase.DECODE, "b")]
    ]

    def told(rows: Any, name: str) -> int:
        with lone.computed(rows, sequences):
            lone.interrupt(name)
            found = int(flag[0])
        lone.interrupt(name)
        return found + 10 * int(flag[0])

    assert told(rows, "a") == 1
    assert told(rows, "b") == 0
    assert told(SimpleNamespace(shares=[SimpleNamespace(sequence=1)]), "b") == 0, "it decodes: its step is short"
    assert told(SimpleNamespace(shares=[*rows.shares, SimpleNamespace(sequence=1)]), "a") == 0, "others are in it"
