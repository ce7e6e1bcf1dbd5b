"""A node tells how old its last look at its server is."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from server.cluster.node_server import NodeOrder, NodeServer
from server.cluster.notices import Notice
from tests.present import present


@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_that_is_to_leave_is_not_started_again(tmp_path, monkeypatch, hangs):
    """Given a server that is up, when it is to leave, then it ends; one that hangs is killed once it is cancelled."""
    config = tmp_path / "onecard.toml"
    config.write_text('[memory]\ndevice = "cpu"\nbudget = "1GiB"\n[scheduler]\ntemplate_process = false\n')
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    async def scenario() -> None:
        node = NodeServer("a", NodeOrder(config, "127.0.0.1", drain_s=600))
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(60):
            while node.told() is None:
                assert not running.done()
                await asyncio.sleep(0.05)
            process = present(node._process)
            if hangs:
                os.kill(process.pid, signal.SIGSTOP)
            node.leave()
            if hangs:
                running.cancel()
            await asyncio.wait({running})
            assert (node._n_lives, present(process.returncode) == -signal.SIGKILL) == (1, hangs)
            assert node.told() is None

    asyncio.run(scenario())


def test_a_server_that_hangs_grows_silent(tmp_path, monkeypatch):
    """Given a server that was heard, when it does not answer any more, then what is told of it grows older."""
    config = tmp_path / "onecard.toml"
    config.write_text('[memory]\ndevice = "cpu"\nbudget = "1GiB"\n[scheduler]\ntemplate_process = false\n')
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    running: asyncio.Task[None] | None = None
    node = NodeServer("a", NodeOrder(config, "127.0.0.1", drain_s=0))

    async def heard(age_s: float, *, older: bool) -> Notice:
        while (told := node.told()) is None or (told.age_s > age_s) != older:
            assert not present(running).done()
            await asyncio.sleep(0.05)
        return told

    async def scenario() -> None:
        nonlocal running
        running = asyncio.create_task(node.run())
        try:
            async with asyncio.timeout(60):
                await heard(0.3, older=False)
                pid = present(node._process).pid
                os.kill(pid, signal.SIGSTOP)
                try:
                    await heard(2.0, older=True)
                finally:
                    os.kill(pid, signal.SIGCONT)
                await heard(0.3, older=False)
        finally:
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(scenario())
