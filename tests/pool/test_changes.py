"""Models come, change and go under load: each accepted job has its answer, and catalogue, pool and ledger agree."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from backends.messages import Failed, Finished, Generate, TextPrompt
from server.settings.catalog import Catalog
from server.settings.config import Settings
from tests.models import broken
from tests.pool.conftest import SLOW, Maker, Rig, failure, read, running, until

NAMES = ("a", "b", "c")


def configure(rig: Rig, models: dict[str, dict[str, Any]]) -> None:
    """Take over a configuration with these models."""
    for name in models:
        (rig.folder / f"{name}.gguf").write_bytes(broken.VALID.encode())
    tables = {name: {"path": str(rig.folder / f"{name}.gguf"), "context": 512, **t} for name, t in models.items()}
    settings = Settings.model_validate(
        {"models": tables, "memory": {"device": "cpu"}, "scheduler": {"template_process": False}}
    )
    rig.pool.change(rig.catalog.become(Catalog(settings)), settings)


def names(rig: Rig) -> set[str]:
    return {model.name for model in rig.pool.status().models}


async def test_random_reloads_under_load_lose_no_job(make: Maker) -> None:
    rig, chance, asked = await make(*NAMES), random.Random(7), list[asyncio.Task[Any]]()
    for _ in range(12):
        models = {
            name: {"context": chance.choice([256, 512]), "keep_alive_s": chance.choice([0, 60])}
            for name in chance.sample(NAMES, chance.randint(1, 3))
        }
        configure(rig, models)
        for name in (chance.choice(list(models)) for _ in range(4)):
            asked.append(asyncio.create_task(rig.ask(name, "!slow 5 10")))
        if chance.choice([True, False]):  # the next comes at once, or when one of them has ended
            await asyncio.wait([one for one in asked if not one.done()], return_when=asyncio.FIRST_COMPLETED)
    ends = [events[-1] for events in await asyncio.gather(*asked)]
    assert [end for end in ends if not isinstance(end, Finished)] == []
    configure(rig, {"a": {}, "d": {}})
    await until(lambda: names(rig) == {"a", "d"})
    assert {entry.name for entry in rig.catalog.entries} == {"a", "d"}
    assert rig.sample("model_state", model_name="d", state="unloaded") == 1
    configure(rig, {"d": {}})
    await until(lambda: names(rig) == {"d"})
    await until(lambda: rig.pool.status().memory.reserved_bytes == 0)


async def test_a_load_under_way_is_begun_anew_and_those_who_wait_get_it(make: Maker) -> None:
    rig = await make("a")
    rig.direct("a", "slow 20")
    by_hand = asyncio.create_task(rig.pool.load("a"))
    job = asyncio.create_task(rig.ask("a", "hello"))
    await until(lambda: "loading" in rig.names())
    rig.direct("a", "")
    configure(rig, {"a": {"context": 256}})
    assert isinstance((await job)[-1], Finished)
    await by_hand
    (line,) = rig.pool.status().models
    assert line.context == 256


async def test_a_removed_model_takes_nothing_new_once_it_is_gone_and_comes_back_new(make: Maker) -> None:
    rig = await make("a", "b")
    entry = rig.catalog.resolve("a")
    assert entry is not None
    stream = await running(rig, "a", SLOW)
    configure(rig, {"b": {}})
    assert names(rig) == {"a", "b"}
    stream.cancel()
    await read(stream)
    await until(lambda: names(rig) == {"b"})
    refused: Failed = failure(await read(rig.pool.submit(entry, Generate("late", TextPrompt("hello")))))
    assert (refused.code, refused.message) == ("model_not_found", "the model 'a' is no longer configured")
    configure(rig, {"a": {}, "b": {}})
    assert isinstance((await rig.ask("a", "hello"))[-1], Finished)


async def test_a_model_that_is_configured_again_before_it_has_gone_stays(make: Maker) -> None:
    rig = await make("a", "b")
    stream = await running(rig, "a", "!slow 10 60")
    configure(rig, {"b": {}})
    configure(rig, {"a": {"context": 256}, "b": {}})
    assert isinstance((await read(stream))[-1], Finished)
    assert isinstance((await rig.ask("a", "hello"))[-1], Finished)
    assert next(m.context for m in rig.pool.status().models if m.name == "a") == 256
    assert "removed" not in rig.names()


async def test_a_plan_that_fails_is_told_and_the_next_reload_forgives_it(make: Maker) -> None:
    rig = await make("a")
    assert isinstance((await rig.ask("a", "hello"))[-1], Finished)
    rig.direct("a", "fail it is no model")
    configure(rig, {"a": {"context": 256}})
    await until(lambda: "load_failed" in rig.names())
    rig.direct("a", "")
    configure(rig, {"a": {"context": 128}})
    assert isinstance((await rig.ask("a", "hello"))[-1], Finished)
