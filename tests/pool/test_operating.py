"""What an operator does with a pool: loads and unloads by hand, lets it drain, closes it."""

from __future__ import annotations

import asyncio
import time

import pytest

from backends.border.worker import Timeouts
from backends.messages import (
    Finished,
)
from server.pool.pool import PoolError
from server.scheduling.decisions import ModelState
from tests.pool.conftest import Maker, failure, read, running, until

# Loading and unloading by hand


async def test_operator_loads_and_unloads(make: Maker) -> None:
    rig = await make()
    await rig.pool.load("a")
    assert rig.pool.info("a").state is ModelState.READY
    await rig.pool.load("a")
    await rig.pool.unload("a")
    assert rig.pool.info("a").state is ModelState.UNLOADED
    assert rig.pool.info("a").ready is not None
    assert rig.sample("model_evictions_total", model_name="a", reason="manual") == 1


async def test_unload_lets_the_running_finish(make: Maker) -> None:
    rig = await make()
    stream = rig.submit("a", "!slow 10 30")
    await asyncio.wait_for(stream.first(), 20)
    unloading = asyncio.create_task(rig.pool.unload("a"))
    events = await read(stream)
    assert isinstance(events[-1], Finished)
    await unloading
    assert rig.pool.status().memory.reserved_bytes == 0


async def test_failed_load_by_hand_says_why(make: Maker) -> None:
    rig = await make()
    rig.direct("a", "oom 3 GiB too few")
    with pytest.raises(PoolError, match="3 GiB too few") as failed:
        await rig.pool.load("a")
    assert failed.value.code == "out_of_memory"
    assert rig.sample("model_loads_total", model_name="a", outcome="oom") == 1


async def test_preloaded_model_is_ready_without_a_request(make: Maker) -> None:
    rig = await make(preload=True)
    await rig.pool.load("a")
    assert rig.names().count("loading") == 1


async def test_idle_model_leaves_by_itself(make: Maker) -> None:
    rig = await make(keep_alive_s=0.1)
    await rig.ask("a", "hello")
    await until(lambda: rig.pool.info("a").state is ModelState.UNLOADED)
    assert rig.sample("model_evictions_total", model_name="a", reason="ttl") == 1


async def test_looking_never_loads(make: Maker) -> None:
    rig = await make()
    for _ in range(3):
        rig.pool.status()
        rig.pool.info("a")
        rig.metrics.render()
    assert rig.pool.info("a").state is ModelState.UNLOADED
    assert "loading" not in rig.names()


async def test_header_is_known_before_the_first_load(make: Maker) -> None:
    rig = await make()
    await until(lambda: rig.pool.info("a").header is not None)
    header = rig.pool.info("a").header
    assert header is not None
    assert header.n_ctx_train == 64


# Draining


async def test_drain_refuses_new_jobs_and_lets_the_others_finish(make: Maker) -> None:
    rig = await make(parallel=1)
    stream = rig.submit("a", "!slow 10 40")
    await asyncio.wait_for(stream.first(), 20)
    waiting = rig.submit("a", "waits")

    rig.pool.begin_drain()
    closing = asyncio.create_task(rig.pool.close(20))

    assert not rig.pool.ready
    assert failure(await rig.ask("a", "late")).code == "draining"
    assert isinstance((await read(stream))[-1], Finished)
    assert isinstance((await read(waiting))[-1], Finished)
    await closing


async def test_grace_ends_and_the_rest_is_told(make: Maker) -> None:
    rig = await make(parallel=1)
    stream = await running(rig)
    waiting = rig.submit("a", "waits")

    began = time.monotonic()
    await rig.pool.close(0.2)

    assert time.monotonic() - began < 15
    assert failure(await read(stream)).code == "draining"
    assert failure(await read(waiting)).code == "draining"


async def test_close_now_does_not_wait_for_a_hung_engine_or_a_load(make: Maker) -> None:
    rig = await make("a", "b")
    hung = await running(rig, "a", "!hang")
    rig.direct("b", "hang")
    loading = rig.submit("b", "hello")
    await until(lambda: rig.pool.info("b").state is ModelState.LOADING)

    began = time.monotonic()
    await rig.pool.close(0)

    assert time.monotonic() - began < Timeouts().stop_s, "what a worker has when the server goes on"
    assert failure(await read(hung)).code == "draining"
    assert failure(await read(loading)).code == "draining"


async def test_close_before_anything_happened(make: Maker) -> None:
    rig = await make()
    await rig.pool.close(5)
