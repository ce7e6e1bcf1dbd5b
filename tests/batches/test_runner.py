"""The runner's walk over a store that has a fault."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from server.batches import runner
from server.batches.runner import BatchRunner


async def test_a_fault_of_ours_pauses_batches_and_does_not_end_them(monkeypatch, caplog):
    monkeypatch.setattr(runner, "_TROUBLE_S", 0.0)
    loop, looked_again = asyncio.get_running_loop(), asyncio.Event()

    class Store:
        n_looks = 0

        def open_batches(self) -> list[Any]:
            self.n_looks += 1
            if self.n_looks == 1:
                raise ValueError("ours")
            loop.call_soon_threadsafe(looked_again.set)
            return []

        def models_left(self) -> list[str]:
            return []

    store, none = Store(), None
    made: Any = BatchRunner(store, none, none, none, clock=time.time, count=lambda _: None)  # type: ignore[arg-type]

    await made.start(at_once=True)
    await asyncio.wait_for(looked_again.wait(), 10)
    await made.close()

    assert "batches_paused error=ValueError" in caplog.text
