"""A step that computes one prompt ends early, with its job or for another, and leaves the cells as they were."""

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
from backends.generation.pace import Chunk, Pace
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


def making_way(engine: Engine, over: threading.Event) -> None:
    while not over.is_set():
        engine.make_way()


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


def believes_it_is_slow(engine: Any) -> None:
    for _ in range(30):  # it believes no more than twice as much at once
        engine._batcher.pace.learn(n_decode=0, chunks=[Chunk(0, 512)], duration_us=512 * 20_000)


def slow(us_a_token: float) -> Pace:
    pace = Pace()
    pace.learn(n_decode=1, chunks=(), duration_us=1_000)
    pace.learn(n_decode=0, chunks=[Chunk(0, 512)], duration_us=512 * us_a_token)
    return pace


def shares(*numbers: int, n_tokens: int = 512) -> Any:
    return SimpleNamespace(shares=[SimpleNamespace(sequence=number) for number in numbers], n_tokens=n_tokens)


def sequences_of(*phases: tuple[Phase, str]) -> list[Any]:
    return [
        SimpleNamespace(phase=phase, n_past=0, hurried=False, request=SimpleNamespace(job=SimpleNamespace(id=name)))
        for phase, name in phases
    ]


def test_what_comes_ends_a_step_that_serves_one_prompt_for_long_and_not_a_second_one(engine: Any) -> None:
    (plain,) = run(engine, [asked("plain", prompt(7, N_PROMPT))])
    believes_it_is_slow(engine)
    outcome = Outcome(engine.add(engine.prepare(asked("a", prompt(7, N_PROMPT)))))
    came = [True, True]
    engine.attend(lambda: bool(came) and came.pop())

    steps = [engine.step() for _ in range(2)]
    outcome.events += [event for step in steps for event in step.events]
    step_until_idle(engine, {"a": outcome})

    assert steps[0].n_prefill == 0, "what came before the step began was planned without"
    assert steps[1].n_prefill > 0, "it goes on, whatever else comes"
    assert outcome.logprobs() == plain.logprobs()


def test_a_job_that_comes_meanwhile_ends_the_step_in_time(engine: Any) -> None:
    believes_it_is_slow(engine)
    outcome = Outcome(engine.add(engine.prepare(asked("a", prompt(9, N_PROMPT)))))
    over = threading.Event()
    other = threading.Thread(target=making_way, args=(engine, over))
    other.start()
    n_first = engine.step().n_prefill
    over.set()
    other.join()
    step_until_idle(engine, {"a": outcome})

    assert n_first == 0
    assert outcome.finished.prompt_tokens == N_PROMPT


@pytest.mark.parametrize(
    ("us_a_token", "now_us", "hurried", "ends"),
    [
        pytest.param(2_000, 0.0, False, 1, id="long, and just begun"),
        pytest.param(2_000, float("inf"), False, 0, id="half of it is done"),
        pytest.param(200, 0.0, False, 0, id="a tenth of a second"),
        pytest.param(2_000, 0.0, True, 0, id="one before it was ended"),
    ],
)
def test_what_comes_ends_a_long_step_in_its_first_half(
    us_a_token: float, now_us: float, hurried: bool, ends: int
) -> None:
    flag, (sequence,) = np.zeros(2, np.uint8), sequences_of((Phase.PREFILL, "a"))
    sequence.hurried = hurried
    lone = LonePrompt(flag, yields=True)

    with lone.computed(shares(0), [sequence], slow(us_a_token)):
        lone.make_way(now_us)
        told = int(flag[0])
    lone.make_way(now_us)

    assert (told, int(flag[0])) == (ends, 0)


def test_a_step_that_could_not_be_ended_loses_nothing() -> None:
    flag, (sequence,) = np.zeros(2, np.uint8), sequences_of((Phase.PREFILL, "a"))
    lone = LonePrompt(flag, yields=False)
    lone.waits = lambda: True

    with lone.computed(shares(0), [sequence], slow(10_000)):
        lone.make_way(0)
        assert not flag.any()
        lone.interrupt("a")
        assert flag.any()


def test_only_the_prompt_that_is_computed_alone_is_interrupted() -> None:
    flag = np.zeros(2, np.uint8)
    lone, rows = LonePrompt(flag, yields=True), shares(0)
    sequences = sequences_of((Phase.PREFILL, "a"), (Phase.DECODE, "b"))

    def told(rows: Any, name: str) -> int:
        with lone.computed(rows, sequences, slow(100)):
            lone.interrupt(name)
            found = int(flag[0])
        lone.interrupt(name)
        return found + 10 * int(flag[0])

    assert told(rows, "a") == 1
    assert told(rows, "b") == 0
    assert told(shares(1), "b") == 0, "it decodes: its step is short"
    assert told(shares(0, 1), "a") == 0, "others are in it"
