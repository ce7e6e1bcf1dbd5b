"""What the scheduler achieves in simulated time on the traces it is measured by, and how long one decision takes."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest

from backends.plan import Amount
from server.scheduling.decisions import Load
from server.scheduling.scheduler import ModelRules, Rules, Scheduler, SwapRules
from tests.scheduler.fake_budget import FakeBudget
from tests.scheduler.simulation import Simulation

FIVE = [f"m{i}" for i in range(5)]
FOUR = {"a": 5, "b": 4, "c": 3, "d": 2}


def rotate(models: list[str], by: int) -> Iterator[str]:
    return cycle(models[by:] + models[:by])


def at_random(models: list[str], seed: int) -> Iterator[str]:
    chosen = random.Random(seed)
    while True:
        yield chosen.choice(models)


def test_five_tiny_models_in_turn_with_room_for_two() -> None:
    run = Simulation(
        sizes=dict.fromkeys(FIVE, 1),
        budget=2,
        clients=[rotate(FIVE, client % 5) for client in range(6)],
        load_s=dict.fromkeys(FIVE, 0.3),
        n_requests=180,
    ).run()

    assert not run.rejected
    assert run.n_loads <= 50
    assert run.mean_s <= 0.6
    assert run.longest_s <= 3.0


def alternating(policy: str) -> Simulation:
    """Three clients, each between two of four models of different size, with room for about two."""
    return Simulation(
        sizes=FOUR,
        budget=8,
        clients=[cycle("ab"), cycle("bc"), cycle("cd")],
        load_s={model: 0.1 * size for model, size in FOUR.items()},
        job_s=0.015,
        n_requests=200,
        policy=policy,  # type: ignore[arg-type]
    ).run()


def test_alternating_clients_need_a_third_of_the_loads_of_first_come_first_served() -> None:
    ours, fifo = alternating("collate"), alternating("fifo")

    assert not ours.rejected
    assert ours.n_loads <= 200 / 3
    assert 3 * ours.n_loads <= fifo.n_loads
    assert ours.mean_s < fifo.mean_s
    assert ours.longest_s <= 60.0


def test_a_card_with_plenty_beside_it_is_served_as_a_machine_with_one_memory_is() -> None:
    """The same models by turns in host memory alone, on the card alone, and in both with one of them short."""
    memories: list[tuple[Callable[[int], int | Amount], int | Amount]] = [
        (int, 8),
        (Amount, Amount(8)),
        (lambda n: Amount(n, 1), Amount(8, 8)),
        (lambda n: Amount(1, n), Amount(8, 8)),
    ]
    runs = []
    for memory, budget in memories:
        sizes = {model: memory(size) for model, size in FOUR.items()}
        runs.append(
            Simulation(
                sizes=sizes,
                budget=budget,
                clients=[at_random(list(FOUR), client) for client in range(3)],
                load_s={model: 0.1 * size for model, size in FOUR.items()},
                n_requests=120,
            ).run()
        )
    assert all((run.n_loads, run.waits) == (runs[0].n_loads, runs[0].waits) for run in runs)


def test_no_order_of_arrival_is_served_worse_than_first_come_first_served() -> None:
    for seed in range(5):
        runs = {
            policy: Simulation(
                sizes=FOUR,
                budget=8,
                clients=[at_random(list(FOUR), 10 * seed + client) for client in range(3)],
                load_s={model: 0.1 * size for model, size in FOUR.items()},
                n_requests=200,
                policy=policy,
            ).run()
            for policy in ("collate", "fifo")
        }
        assert runs["collate"].n_loads < runs["fifo"].n_loads
        assert runs["collate"].mean_s < runs["fifo"].mean_s


@pytest.mark.parametrize("n_clients", [4, 12])
def test_round_robin_over_four_models_with_room_for_one_starves_none(n_clients: int) -> None:
    run = Simulation(
        sizes=dict.fromkeys(FOUR, 1),
        budget=1,
        clients=[rotate(list(FOUR), client % 4) for client in range(n_clients)],
        load_s=dict.fromkeys(FOUR, 1.0),
        until_s=200,
    ).run()

    assert not run.rejected
    assert run.longest_s <= 6.0
    assert run.n_loads <= len(run.all_waits) / 3


def test_one_client_gets_its_share_beside_fifty_of_another_model() -> None:
    run = Simulation(
        sizes={"many": 1, "one": 1},
        budget=1,
        clients=[*(cycle(["many"]) for _ in range(50)), cycle(["one"])],
        load_s={"many": 1.0, "one": 1.0},
        job_s=0.1,
        parallel=4,
        until_s=100,
    ).run()

    waits = sorted(run.waits["one"])
    assert waits[int(0.95 * len(waits))] <= 2 * (4.0 + 1.0)  # twice a turn and a load
    assert not run.rejected


def test_one_client_of_a_model_that_needs_all_places_is_not_overtaken_by_twenty_of_small_ones() -> None:
    small = ["s1", "s2", "s3"]
    run = Simulation(
        sizes={**dict.fromkeys(small, 1), "big": 2},
        budget=2,
        clients=[*(rotate(small, client % 3) for client in range(20)), cycle(["big"])],
        load_s=dict.fromkeys([*small, "big"], 1.0),
        job_s=0.1,
        parallel=2,
        until_s=100,
    ).run()
    assert not run.rejected
    assert max(run.waits["big"]) <= 8.0  # twice that where age counts for nothing


def test_decision_takes_hardly_longer_with_ten_times_as_many_jobs_in_the_queue() -> None:
    """In processor time, both in turn; of five rounds the quickest, because others compute on this machine too."""
    few, many = (min(taken) for taken in zip(*((decision_s(150), decision_s(1500)) for _ in range(5)), strict=True))
    assert many < 2.5 * few, (few, many)


def decision_s(n_jobs: int) -> float:
    """The median of a job's arrival among so many."""
    scheduler, taken = crowded(n_jobs), []
    for n in range(200):
        began = time.thread_time()
        scheduler.submit(f"x{n}", f"m{n % 50}", sequences=1, now=1.0 + n * 1e-4)
        scheduler.next_deadline()
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


def crowded(n_jobs: int) -> Scheduler:
    """Fifty models, twenty of them resident and busy, and so many jobs of which most wait."""
    models = [f"m{i}" for i in range(50)]
    books = FakeBudget(20, dict.fromkeys(models, 1))
    rules = Rules(max_queue=2000, swaps=SwapRules())
    scheduler = Scheduler([ModelRules(m, parallel=2) for m in models], rules, books)
    n_loaded = 0
    for n in range(n_jobs):
        actions = scheduler.submit(f"j{n}", models[n % 50], sequences=1, now=n * 1e-4)
        while n_loaded < 20 and (load := next((a for a in actions if isinstance(a, Load)), None)):
            books.reserve(load.model)
            n_loaded += 1
            actions = scheduler.on_ready(load.model, parallel=2, now=n * 1e-4)
    assert scheduler.n_waiting > 0.7 * n_jobs
    return scheduler
