"""Cached prefixes in a tight budget, with the real engine: never a byte too many, and found again where they fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.messages import Event, Finished, Generate, Sampling, TokenPrompt
from demo import GGUF_PATH
from server.metrics import Metrics
from server.pool.pool import Pool
from server.pool.status import MemoryStatus
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection
from tests.pool.conftest import BOUND_S, until

pytestmark = pytest.mark.engine

MIB = 1 << 20
PROMPT_TOKENS = 950
PLENTY = 1 << 34


@dataclass
class Watched:
    """A pool whose books are read whenever anything happens."""

    pool: Pool
    catalog: Catalog
    seen: list[MemoryStatus] = field(default_factory=list)
    n: int = 0

    def look(self) -> MemoryStatus:
        memory = self.pool.status().memory
        assert memory.reserved_bytes + memory.prefix_cache_reserved_bytes <= memory.budget_bytes
        assert memory.prefix_cache_bytes <= memory.prefix_cache_reserved_bytes <= memory.prefix_cache_max_bytes
        assert memory.over_bytes == 0
        self.seen.append(memory)
        return memory

    async def ask(self, model: str, tokens: list[int], **fields: object) -> tuple[Finished, str]:
        entry = self.catalog.resolve(model)
        assert entry is not None
        self.n += 1
        greedy = Sampling(temperature=0.0)
        job = Generate(f"job{self.n}", TokenPrompt(tokens), sampling=greedy, max_tokens=8, **fields)  # type: ignore[arg-type]
        events: list[Event] = []
        async with asyncio.timeout(BOUND_S):
            async for event in self.pool.submit(entry, job):
                events.append(event)
                self.look()
        assert isinstance(events[-1], Finished), events[-1]
        return events[-1], "".join(getattr(event, "text", "") for event in events)

    async def settled(self, condition: Callable[[MemoryStatus], bool]) -> MemoryStatus:
        await until(lambda: condition(self.look()))
        return self.look()


@asynccontextmanager
async def watched(budget_bytes: int, *names: str, prefix_cache: int = PLENTY, disk: int = 0) -> AsyncIterator[Watched]:
    config = ModelConfig(path=str(GGUF_PATH), context=1024, parallel=2)
    settings = Settings(
        memory=MemorySection(device="cpu", budget=budget_bytes, prefix_cache=prefix_cache, prefix_cache_disk=disk),
        models=dict.fromkeys(names, config),
    )
    catalog = Catalog(settings)
    made = Watched(Pool(settings, catalog, Metrics(list(names))), catalog)

    def look(what: str, _: dict[str, object]) -> None:
        if what != "started":
            made.look()

    made.pool.on_change.append(look)
    await made.pool.start()
    try:
        yield made
    finally:
        await made.pool.close(0)
    memory = made.pool.status().memory
    assert (memory.reserved_bytes, memory.prefix_cache_reserved_bytes, memory.prefix_cache_bytes) == (0, 0, 0)


def prompt(number: int) -> list[int]:
    """Tokens that no other number's prompt begins with."""
    return [300 + number, *(300 + (number * 37 + i * 11) % 200 for i in range(PROMPT_TOKENS - 1))]


@pytest.fixture
async def need() -> int:
    """What the demo model takes."""
    async with watched(1 << 30, "a") as only:
        await only.ask("a", prompt(0))
        return only.look().reserved_bytes


async def test_a_store_that_fills_stays_inside_the_budget_and_gives_way_to_a_model(need: int) -> None:
    async with watched(2 * need + 4 * MIB, "a", "b", prefix_cache=12 * MIB) as rig:
        for number in range(14):
            await rig.ask("a", prompt(number))
        alone = rig.look()
        assert alone.prefix_cache_reserved_bytes == 12 * MIB
        assert alone.prefix_cache_bytes > 10 * MIB, "it has filled"

        await rig.ask("b", prompt(50))
        both = await rig.settled(lambda m: m.prefix_cache_reserved_bytes > m.budget_bytes - m.reserved_bytes - 2)
        assert [m.state for m in rig.pool.status().models] == ["ready", "ready"], "states left, no model"
        assert 0 < both.prefix_cache_reserved_bytes < 5 * MIB
        first, text = await rig.ask("a", prompt(60))
        again, same = await rig.ask("a", prompt(60))

        assert (first.cached_tokens, again.cached_tokens) == (0, PROMPT_TOKENS - 1)
        assert same == text == (await rig.ask("a", prompt(60), cache_prompt=False))[1]


async def test_a_conversation_is_found_again_after_a_swap_where_there_is_room_and_computed_where_not(need: int) -> None:
    for budget, expected in ((3 * need // 2, PROMPT_TOKENS - 1), (need + MIB // 4, 0)):
        async with watched(budget, "a", "b") as rig:
            _, before = await rig.ask("a", prompt(1))
            await rig.ask("b", prompt(2))
            assert [m.state for m in rig.pool.status().models] == ["unloaded", "ready"]
            again, after = await rig.ask("a", prompt(1))
            assert (again.cached_tokens, after) == (expected, before)


@pytest.mark.parametrize(("more", "told"), [(MIB // 4, -1), (3 * MIB // 2, MIB // 2)])
async def test_what_a_swap_leaves_no_memory_for_comes_back_from_the_disk(
    need: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, told: int
) -> None:
    """With more bytes than the model needs, of which so many hold the conversation before the swap."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def on_disk() -> list[Path]:
        return list(tmp_path.rglob("*.kv"))

    async with watched(need + more, "a", "b", disk=64 * MIB) as rig:
        _, before = await rig.ask("a", prompt(1))
        await rig.settled(lambda m: m.prefix_cache_bytes > told and (told > 0 or bool(on_disk())))
        await rig.ask("b", prompt(2))
        again, after = await rig.ask("a", prompt(1))

        assert (again.cached_tokens, after) == (PROMPT_TOKENS - 1, before)
        assert on_disk()
    assert not on_disk()


async def test_when_a_model_leaves_the_others_may_keep_more(need: int) -> None:
    async with watched(2 * need + 4 * MIB, "a", "b") as rig:
        await rig.ask("a", prompt(1))
        await rig.ask("b", prompt(2))
        await rig.settled(lambda m: m.prefix_cache_reserved_bytes >= m.budget_bytes - m.reserved_bytes - 1)
        await rig.pool.unload("b")

        memory = await rig.settled(lambda m: m.prefix_cache_reserved_bytes > need)

        assert memory.budget_bytes - memory.reserved_bytes - memory.prefix_cache_reserved_bytes in (0, 1)
