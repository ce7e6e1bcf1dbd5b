"""Speeds of plans: from rates and bytes, corrected by what steps took; and the fastest of plans that are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backends.gguf.arithmetic import predict
from backends.gguf.info import HeaderInfo
from backends.gguf.speed import TOKEN_S, GgufSpeeds, works
from backends.messages import Delta, Finished, GeneratorPlan, LoadPlan, Started, Step
from backends.messages.plans import ALL_LAYERS
from backends.plan import Amount, Wish
from backends.speed import ASSUMED_CARD, Machine, Rates, Speed, with_assumed_card
from server.memory.files import FileFacts
from server.memory.learned import Learned
from server.memory.placement import Placed, place
from server.memory.speeds import SpeedEstimate, SpeedEstimator
from server.pool.speed_meter import SpeedMeter
from tests.gguf.test_offload import DENSE_24B, DENSE_70B, GIB, ON_CARD, QWEN3_30B

CPU = Rates(
    weights={"Q4_K": 20e9, "Q6_K": 30e9},
    rows={"Q4_K": 1e-9},
    batches={"Q4_K": 200e9, "Q6_K": 100e9},
    memory=40e9,
    attention={"f16 64": 7e9, "q8_0 64": 3e9},
    attention_batches={"f16 64": 50e9},
)
MACHINE = Machine(CPU, CPU)
SPEEDS = GgufSpeeds()
PLAN = GeneratorPlan(8192, 1)


def speed_of(header: HeaderInfo, plan: LoadPlan, machine: Machine = MACHINE) -> Speed:
    assert isinstance(plan, GeneratorPlan)
    found = SPEEDS.speed(header, plan, machine)
    assert found is not None
    return found


def chosen(header: HeaderInfo, room: Amount, machine: Machine | None, wish: Wish = ON_CARD) -> GeneratorPlan:
    """What placement takes; without a machine the first that fits."""
    speed = None if machine is None else lambda plan: speed_of(header, plan, machine)
    found = place("m", header, wish, budget=room, free=room, speed=speed)
    assert isinstance(found, Placed)
    assert found.footprint.amount.within(room)
    assert isinstance(found.plan, GeneratorPlan)
    return found.plan


def facts(path: Path = Path("m.gguf"), n: int = 1) -> FileFacts:
    return FileFacts(path, (n, n, n), QWEN3_30B)


def estimator(path: Path) -> SpeedEstimator:
    """One that has measured the machine."""
    made = SpeedEstimator(Learned(path), engine="e-1")
    made.keep("gguf", MACHINE)
    return made


def test_a_token_reads_the_weights_it_uses_and_the_cells_before_it() -> None:
    host, device = works(QWEN3_30B, PLAN)
    experts = sum(t.n_bytes for t in QWEN3_30B.tensors if "_exps" in t.name)
    embedding = next(t.n_bytes for t in QWEN3_30B.tensors if t.name == "token_embd.weight")
    used = QWEN3_30B.weight_bytes - experts - embedding + experts * 8 / 128

    speed = speed_of(QWEN3_30B, PLAN)
    empty = 1 / speed.decode_per_s(0)
    assert device.n_matrices == 0
    assert sum(host.read.values()) == pytest.approx(used, rel=1e-6)
    assert empty == pytest.approx(used / 20e9 + TOKEN_S * 151_936, rel=0.01)
    assert 1 / speed.decode_per_s(8000) - empty == pytest.approx(8000 * 48 * (32 + 4 * 4) / 2 * 256 / 7e9, rel=1e-6)


def test_what_lies_on_the_card_is_read_there() -> None:
    machine = with_assumed_card(MACHINE)
    plans = [GeneratorPlan(8192, 1, device="cuda", expert_layers=n) for n in (0, 16, 32, 48)]
    times = [1 / speed_of(QWEN3_30B, plan, machine).decode_per_s() for plan in plans]

    assert machine.device == ASSUMED_CARD
    assert times == sorted(times)
    experts = sum(t.n_bytes for t in QWEN3_30B.tensors if "_exps" in t.name) * 8 / 128
    assert times[3] - times[0] == pytest.approx(experts / 20e9 - experts / 4e11, rel=0.02)


def test_a_type_that_was_not_measured_is_taken_for_the_slowest() -> None:
    assert CPU.weight_s({"IQ1_S": 20e9}, cached=True) == 1.0
    assert CPU.weight_s({"Q6_K": 30e9}, cached=False) == 1.0
    slow = replace_memory(10e9)
    assert slow.weight_s({"Q6_K": 30e9}, cached=True) == 1.0
    assert slow.weight_s({"Q6_K": 30e9}, cached=False) == pytest.approx(30e9 * (1 / 30e9 + 1 / 10e9 - 1 / 20e9))


def test_a_type_that_was_measured_out_of_memory_waits_as_long_as_it_did_there() -> None:
    rates = msgspec.structs.replace(replace_memory(10e9), like="Q4_K", streamed={"Q6_K": 24e9})

    assert rates.weight_s({"Q6_K": 24e9}, cached=False) == pytest.approx(1.0)
    assert rates.weight_s({"Q6_K": 30e9}, cached=True) == pytest.approx(1.0)
    assert rates.weight_s({"Q4_K": 10e9}, cached=False) == pytest.approx(1.0)  # as `memory` says
    impossible = msgspec.structs.replace(rates, streamed={"Q6_K": 99e9})
    assert impossible.weight_s({"Q6_K": 30e9}, cached=False) == pytest.approx(1.0)
    two = rates.scaled(
        products=2.0, in_batches=2.0, memory=15e9, streamed={"Q6_K": 36e9}, matrix_s=0, node_s=0, graph_s=0
    )
    assert two.weight_s({"Q6_K": 36e9}, cached=False) == pytest.approx(1.0)  # its own, whatever memory does


def replace_memory(memory: float) -> Rates:
    return msgspec.structs.replace(CPU, memory=memory)


@pytest.mark.parametrize("header", [DENSE_24B, DENSE_70B], ids=["24B", "70B"])
def test_the_fastest_of_plans_that_give_up_the_same_is_taken(header: HeaderInfo) -> None:
    room, machine = Amount(12 * GIB, 64 * GIB), with_assumed_card(MACHINE)

    first, fastest = chosen(header, room, None), chosen(header, room, machine)

    kept = [(p.context, p.parallel, p.kv_type, p.kv_tokens) for p in (first, fastest)]
    assert kept[0] == kept[1]
    alike = SPEEDS.alike(header, ON_CARD, first, lambda plan: predict(header, plan).amount.within(room))
    times = [speed_of(header, plan, machine).turn_s for plan in (first, *alike)]
    assert len(times) > 1
    assert speed_of(header, fastest, machine).turn_s <= min(times) / 0.97


def test_a_processor_that_attends_slowly_keeps_the_cache_on_the_card() -> None:
    """And where each product costs the card a millisecond, whole layers leave it rather than the half of more."""
    room, wish = Amount(9 * GIB, 64 * GIB), replace(ON_CARD, context=8192, open=frozenset())
    card = msgspec.structs.replace(ASSUMED_CARD, matrix_s=1e-3)
    plans = {}
    for attention in (1e8, 1e13):
        cpu = Rates({"Q4_K": 1e12}, {}, {"Q4_K": 1e13}, 1e12, {"f16 64": attention}, {"f16 64": attention})
        plans[attention] = chosen(DENSE_24B, room, Machine(cpu, cpu, card, 1e10), wish)

    assert (plans[1e8].gpu_layers, plans[1e8].ffn_layers > 0) == (ALL_LAYERS, True)
    assert (0 <= plans[1e13].gpu_layers < DENSE_24B.n_layers, plans[1e13].ffn_layers) == (True, 0)


def test_what_the_operator_has_said_has_no_alternatives() -> None:
    assert not list(SPEEDS.alike(DENSE_24B, replace(ON_CARD, gpu_layers=7), PLAN, lambda _: True))
    assert not list(SPEEDS.alike(DENSE_24B, replace(ON_CARD, device="cpu"), PLAN, lambda _: True))
    asked = replace(DENSE_24B, ffn_layers=3, expert_layers=0)
    found = list(SPEEDS.alike(asked, ON_CARD, replace_device(PLAN), lambda _: True))
    assert {plan.ffn_layers for plan in found if isinstance(plan, GeneratorPlan)} == {3}


def replace_device(plan: GeneratorPlan) -> GeneratorPlan:
    return msgspec.structs.replace(plan, device="cuda")


def test_nothing_is_foretold_before_the_machine_is_measured(tmp_path: Path) -> None:
    speeds = SpeedEstimator(Learned(tmp_path / "l.json"), engine="e-1")

    assert speeds.estimate(facts(), PLAN) is None
    assert speeds.source("gguf") is None


def test_the_nearest_measurement_corrects(tmp_path: Path) -> None:
    speeds = estimator(tmp_path / "l.json")
    cold = told(speeds, PLAN)
    other = msgspec.structs.replace(PLAN, context=4096)

    for ratio in (2.0, 2.0, 30.0):  # one slow moment changes nothing
        speeds.learn(facts(), PLAN, "decode", ratio)

    assert cold.source == "computed"
    assert (told(speeds, PLAN).source, told(speeds, other).source) == ("measured", "learned")
    assert told(speeds, PLAN).speed.decode_per_s() == pytest.approx(cold.speed.decode_per_s() / 2)
    assert told(speeds, PLAN).speed.prefill_per_s() == cold.speed.prefill_per_s()
    assert told(speeds, PLAN, facts(n=2)).source == "learned"  # another file, the same machine
    for nonsense in (0.0, float("nan"), 1e9):
        speeds.learn(facts(), PLAN, "decode", nonsense)
    assert told(speeds, PLAN).speed.decode_per_s() == pytest.approx(cold.speed.decode_per_s() / 2)


def told(speeds: SpeedEstimator, plan: GeneratorPlan, of: FileFacts | None = None) -> SpeedEstimate:
    found = speeds.estimate(of or facts(), plan)
    assert found is not None
    return found


def test_figures_are_kept_and_those_of_another_machine_or_engine_are_not_used(tmp_path: Path) -> None:
    file = tmp_path / "l.json"
    speeds = estimator(file)
    speeds.learn(facts(), PLAN, "decode", 2.0)
    speeds.save()

    again = SpeedEstimator(Learned(file), engine="e-1")
    assert told(again, PLAN).source == "measured"
    assert SpeedEstimator(Learned(file), engine="e-2").estimate(facts(), PLAN) is None
    again.keep("gguf", Machine(replace_memory(39e9), CPU))
    assert told(again, PLAN).source == "computed"  # ratios are of the rates they were taken with


def test_a_rough_measurement_is_repeated_after_an_hour_and_a_good_one_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONECARD_TEST_ENGINE", raising=False)
    now = [1000.0]
    speeds = SpeedEstimator(Learned(tmp_path / "l.json"), engine="e-1", clock=lambda: now[0])
    assert speeds.wants("gguf")

    speeds.keep("gguf", Machine(CPU, CPU, source="rough"))
    assert not speeds.wants("gguf")
    now[0] += 3601
    assert speeds.wants("gguf")

    speeds.keep("gguf", MACHINE)
    now[0] += 1e6
    assert not speeds.wants("gguf")
    assert not speeds.wants("speech")  # nothing is foretold of it


def test_damaged_figures_count_as_none(tmp_path: Path) -> None:
    learned = Learned(tmp_path / "l.json")
    speeds = estimator(tmp_path / "l.json")
    learned.put("rates", speeds.key("gguf"), {"host": 3})

    assert SpeedEstimator(learned, engine="e-1").estimate(facts(), PLAN) is None


SPEED = Speed(token_s=0.01, cell_s=1e-5, prompt_s=0.001, prompt_cell_s=1e-6, context=8192)


def meter() -> SpeedMeter:
    return SpeedMeter(SPEED, SpeedEstimate(SPEED, "computed"))


def test_steps_of_one_request_alone_are_measured_at_the_place_they_were_made() -> None:
    watch = meter()
    full = watch.on_step(
        Step([Started("a", 500, cached_tokens=100)], n_prefill=400, n_decode=1, duration_us=600_000), 1.0
    )
    assert full == [("prefill", pytest.approx(0.6 / (400 * (0.001 + 1e-6 * 300))))]

    now, full = 1.0, []
    for _ in range(60):
        now += 0.03
        full += watch.on_step(Step([Delta("a", 0, "x", 2)], n_decode=2, batches=[1, 1], duration_us=1), now)

    assert full[0] == ("decode", pytest.approx(0.015 / (0.01 + 1e-5 * 525), rel=0.01))
    status = watch.status
    assert status.measured_decode_tokens_per_s == pytest.approx(status.decode_tokens_per_s / full[-1][1], rel=0.01)
    assert status.decode_error == pytest.approx(1 / full[-1][1] - 1, abs=0.01)
    assert status.prefill_error is not None


def test_what_is_shared_or_stands_still_is_not_counted() -> None:
    watch = meter()
    watch.on_step(Step([Started("a", 10)], n_prefill=10, n_decode=1, duration_us=10), 0.0)
    watch.on_step(Step([Started("b", 400)], n_prefill=400, n_decode=2, duration_us=9_000_000), 1.0)
    for second in range(60):
        watch.on_step(Step(n_decode=2, duration_us=1), 2.0 + second)
    watch.on_step(Step([Finished("b")], n_decode=2), 70.0)
    assert (watch.status.measured_decode_tokens_per_s, watch.status.measured_prefill_tokens_per_s) == (None, None)

    full = [one for second in range(60) for one in watch.on_step(Step(n_decode=1), 1000 + 0.02 * second)]
    assert [phase for phase, _ in full] == ["decode"]
    assert full[0][1] < 3  # the pause before is not in it
