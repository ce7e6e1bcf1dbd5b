"""The number of threads of a step: all on a machine with room, fewer beside others, and all again afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from backends.gguf.threads import MOST_ROWS, ThreadChoice

QUIET: Callable[[int], float] = lambda n: 1000 + 8000 / n  # noqa: E731
"""Microseconds of a step by threads."""


def crowded(taken: int, of: int) -> Callable[[int], float]:
    """The same beside processes that hold `taken` cores: more threads than are free wait at every barrier."""
    return lambda n: QUIET(n) if n <= of - taken else 4 * QUIET(n)


def steps(choice: ThreadChoice, cost: Callable[[int], float], n_steps: int, *, waits: bool, rows: int = 1) -> list[int]:
    """Make steps; the threads of each. `waits`: whether threads are held up where `cost` is not that of quiet."""
    used = []
    for _ in range(n_steps):
        n = choice.next(rows)
        used.append(n)
        choice.learn(rows, cost(n))
        if choice.asks:
            choice.crowded(8 * cost(n) * (0.5 if waits and cost(n) > QUIET(n) else 0.1))
    return used


@pytest.mark.parametrize("rows", [1, 8, MOST_ROWS])
def test_with_room_every_step_has_all_threads(rows: int) -> None:
    assert set(steps(ThreadChoice(2), QUIET, 2000, waits=False, rows=rows)) == {2}


def test_slow_steps_alone_are_no_reason() -> None:
    """A deeper sequence takes longer, and so does a slower clock: none waits for a core."""
    assert set(steps(ThreadChoice(2), lambda n: 5 * QUIET(n), 2000, waits=False)) == {2}


@pytest.mark.parametrize(("most", "taken"), [(2, 1), (8, 1), (8, 3), (4, 3)])
def test_beside_others_it_takes_the_cores_that_are_free_and_all_again_later(most: int, taken: int) -> None:
    choice = ThreadChoice(most)
    steps(choice, QUIET, 50, waits=False)
    beside = steps(choice, crowded(taken, most), 1500, waits=True)
    assert beside[:60] != [most] * 60
    later = beside[500:]
    assert later.count(most - taken) >= 0.9 * len(later)
    again = steps(choice, QUIET, 3000, waits=False)
    assert set(again[-300:]) == {most}


def test_where_fewer_are_no_faster_trials_become_rare() -> None:
    """Threads wait, and still two are better than one."""
    choice, used = ThreadChoice(2), []
    for _ in range(3000):
        n = choice.next(1)
        used.append(n)
        choice.learn(1, 2 * QUIET(n))
        if choice.asks:
            choice.crowded(8 * QUIET(n))
    assert 0 < used.count(1) <= 100


def test_a_step_that_ended_early_proves_nothing() -> None:
    """Every other step with one thread finds no room and is over at once; whole ones are slower than with two."""
    choice, used = ThreadChoice(2), []
    for number in range(3000):
        n = choice.next(1)
        used.append(n)
        early = n == 1 and number % 2 == 0
        choice.learn(1, 20 if early else 2 * QUIET(n), whole=not early)
        if choice.asks:
            choice.crowded(8 * QUIET(n))
    assert 0 < used.count(1) <= 200


def test_long_steps_take_all_and_disturb_no_comparison() -> None:
    choice = ThreadChoice(2)
    for _ in range(300):
        for rows in (1, 512):
            n = choice.next(rows)
            assert rows == 1 or n == 2
            choice.learn(rows, crowded(1, 2)(n) if rows == 1 else 80_000)
            if choice.asks:
                choice.crowded(400_000)
    assert choice.next(1) == 1


def test_waiting_for_a_core_is_seen() -> None:
    """Two processes on one core: each waits for half of the time."""
    script = (
        "import os, time\n"
        "from backends.gguf.threads import waited_ns\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    end = time.monotonic() + 20\n"
        "    while time.monotonic() < end: pass\n"
        "    os._exit(0)\n"
        "before, end = waited_ns(), time.monotonic() + 20\n"
        "while waited_ns() - before < 20_000_000 and time.monotonic() < end: pass\n"
        "print(waited_ns() - before >= 20_000_000)\n"
        "os.kill(child, 9); os.waitpid(child, 0)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "True"
