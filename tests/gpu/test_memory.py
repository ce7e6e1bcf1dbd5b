"""The ledger on a real card, under 12 GiB: predicted and measured bytes, eviction, and a card that others fill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backends.machine import host
from backends.messages import ErrorCode, Finished
from demo import GGUF_PATH
from server.memory import gpu
from server.pool.pool import PoolError
from server.settings.config import ModelConfig
from tests.gpu.conftest import Rig, Start

pytestmark = pytest.mark.gpu
GIB = 2**30
SLACK_BYTES = 256 * 2**20
"""The driver's own pages beside a process's."""


def model(path: Path, **given: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(path), **given})


async def refusal(rig: Rig, name: str) -> ErrorCode | None:
    """Why the model could not be loaded; None when it could."""
    try:
        async with asyncio.timeout(60):
            await rig.pool.load(name)
    except PoolError as problem:
        return problem.code
    return None


async def test_estimates_are_what_the_card_gives_and_are_learned(start: Start, hungry: Path) -> None:
    models = {"demo": model(GGUF_PATH, context=2048), "hungry": model(hungry, context=4096, parallel=8)}
    errors = []
    for _ in range(2):
        rig = await start(models)
        before = (await gpu.memory()).free_bytes
        status = {name: await rig.loaded(name) for name in models}
        held = before - (await gpu.memory()).free_bytes
        assert abs(held - sum(line.measured_bytes or 0 for line in status.values())) <= SLACK_BYTES
        assert rig.pool.status().memory.reserved_bytes <= rig.pool.status().memory.budget_bytes
        for line in status.values():
            assert line.host is not None
            assert line.pid is not None
            assert host.anonymous_bytes(line.pid) <= (line.host.measured_bytes or 0) + SLACK_BYTES
        told = rig.pool.status().memory.host
        assert told is not None
        assert told.reserved_bytes <= told.budget_bytes
        errors.append([abs(line.prediction_error or 0.0) for line in status.values()])

    assert max(errors[0]) <= 0.15
    assert max(errors[1]) <= 0.03


async def test_models_take_turns_and_the_card_gets_everything_back(start: Start, hungry: Path) -> None:
    wide = model(hungry, context=8192, parallel=8)  # 8 GiB of KV cache each
    rig = await start({"a": wide, "b": wide})
    free = (await gpu.memory()).free_bytes
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        status = await rig.loaded(name)
        assert (status.state, rig.status(other).state) == ("ready", "unloaded")
        assert status.gpu_layers == status.n_layers
        assert isinstance((await rig.ask(name, "hello"))[1], Finished)
    await rig.pool.unload("a")
    assert abs(free - (await gpu.memory()).free_bytes) <= SLACK_BYTES


async def test_a_card_that_others_fill_costs_a_smaller_plan_or_a_refusal_and_no_crash(
    start: Start, hungry: Path, taken: Callable[[int], AbstractContextManager[None]]
) -> None:
    rig = await start({"a": model(hungry), "demo": model(GGUF_PATH, context=512, parallel=1)})
    with taken(3 * GIB):
        refused = await refusal(rig, "a")
        assert refused in (None, "memory_busy", "out_of_memory", "cannot_fit")
        if refused is None:
            assert (rig.status("a").measured_bytes or 0) < 3 * GIB
            assert isinstance((await rig.ask("a", "hello"))[1], Finished)
    async with asyncio.timeout(60):
        assert isinstance((await rig.ask("demo", "hello"))[1], Finished)


async def test_an_idle_model_leaves_ahead_of_a_program_that_takes_more_and_more(
    start: Start, taken: Callable[[int], AbstractContextManager[None]]
) -> None:
    rig = await start({"demo": model(GGUF_PATH, context=512, parallel=1)}, budget="auto")
    await rig.loaded("demo")
    await rig.pool._parts.memory.look()
    with taken((await gpu.memory()).total_bytes * 3 // 10):
        async with asyncio.timeout(30):
            while rig.status("demo").state != "unloaded":  # noqa: ASYNC110 - it looks by its own clock
                await asyncio.sleep(0.1)
        assert rig.pool.status().memory.headroom_bytes > 0
    async with asyncio.timeout(30):
        while rig.pool.status().memory.headroom_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert isinstance((await rig.ask("demo", "hello"))[1], Finished)
