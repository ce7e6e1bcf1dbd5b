"""Disks that do not answer: a model's look is given up in time, holds one thread, and costs no other anything."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from backends.backend import HeaderError
from server.memory.files import FileReader


def threads() -> int:
    return sum(1 for thread in threading.enumerate() if thread.name == "model-files")


async def test_a_disk_that_hangs_costs_one_thread_and_no_other_model() -> None:
    reader, hangs, before = FileReader(within_s=0.2), threading.Event(), threads()
    try:
        stuck = [asyncio.create_task(reader.read("stuck", hangs.wait)) for _ in range(24)]
        other = await reader.read("other", lambda: "read")
        told = await asyncio.gather(*stuck, return_exceptions=True)

        assert other == "read"
        assert {type(one) for one in told} == {HeaderError}
        assert "does not answer" in str(told[0])
        assert threads() == before + 1
        with pytest.raises(HeaderError, match="does not answer"):
            await reader.read("stuck", lambda: "too early")
        assert reader.at_once("stuck", lambda: "too early") is None
        assert await asyncio.to_thread(lambda: "bodies are parsed") == "bodies are parsed"
    finally:
        hangs.set()

    async with asyncio.timeout(5):
        while reader.at_once("stuck", lambda: True) is None:  # noqa: ASYNC110 - the thread has no event loop to tell
            await asyncio.sleep(0)
    assert await reader.read("stuck", lambda: "again") == "again"


async def test_what_goes_wrong_is_raised_where_it_was_asked() -> None:
    def fails() -> None:
        raise HeaderError("it is no model")

    with pytest.raises(HeaderError, match="it is no model"):
        await FileReader().read("x", fails)


async def test_looks_at_one_model_come_one_after_the_other() -> None:
    reader, inside, most = FileReader(), [0], [0]

    def look() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1

    await asyncio.gather(*(reader.read("x", look) for _ in range(8)))

    assert most == [1]
