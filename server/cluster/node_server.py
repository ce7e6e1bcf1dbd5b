"""One `onecard serve` as a child: started, looked at, and started anew when it ends. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import httpx2

from server.cluster.notices import Notice, Watch

if TYPE_CHECKING:
    from pathlib import Path

LOOK_EVERY_S: Final = 0.5
LOOK_WITHIN_S: Final = 5.0
START_WITHIN_S: Final = 120.0
LONGEST_PAUSE_S: Final = 30.0
"""Between two starts of a server that ends again and again."""
LASTED_S: Final = 60.0
"""A server that lived so long was no failed start."""
_URL: Final = re.compile(rb"\"url\": ?\"(http://[^\"]+)\"")


@dataclass(frozen=True)
class NodeOrder:
    """What a node is to serve."""

    config: Path | None
    host: str
    """The address that edges reach it by."""
    keys: tuple[str, ...] = ()
    """Admin keys, the cluster's own first; empty where none is needed."""
    drain_s: float = 30.0


class NodeServer:
    """See the module's text. `run` goes on until it is cancelled."""

    def __init__(self, name: str, order: NodeOrder) -> None:
        self.name = name
        self.notice: Notice | None = None
        """As of the last look; None while no server is up."""
        self.heard_at = 0.0
        self.n_failed = 0
        """Starts in a row whose server did not last."""
        self._leaves = asyncio.Event()
        self._order = order
        self._process: asyncio.subprocess.Process | None = None
        self._n_lives = 0
        self._watch: Watch | None = None
        """What it has learned of models holds in the next life, too."""

    def told(self) -> Notice | None:
        """What edges are told: the last look and its age, which grows while the server does not answer."""
        return None if self.notice is None else replace(self.notice, age_s=time.monotonic() - self.heard_at)

    def leave(self) -> None:
        """Start no further server: `run` returns when the one there is has drained, and tells of it until then."""
        self._leaves.set()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def run(self) -> None:
        """Keep a server up, until `leave`; when cancelled, let it drain and end, or end at once where it leaves."""
        headers = {"authorization": f"Bearer {self._order.keys[0]}"} if self._order.keys else {}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=LOOK_WITHIN_S) as client:
            try:
                while not self._leaves.is_set():
                    began = time.monotonic()
                    await self._live(client)
                    self.notice = None
                    self.n_failed = 0 if time.monotonic() - began > LASTED_S else self.n_failed + 1
                    with contextlib.suppress(TimeoutError):
                        pause_s = max(0.0, min(2 ** (self.n_failed - 1) - 1, LONGEST_PAUSE_S))
                        await asyncio.wait_for(self._leaves.wait(), pause_s)
            finally:
                self.notice = None
                await self._end()

    async def _live(self, client: httpx2.AsyncClient) -> None:
        """One server from its start to its end."""
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=asyncio.subprocess.PIPE,  # our end of a pipe: when we are gone, however we went, the server goes too
            stdout=asyncio.subprocess.PIPE,
            env=self._environment(),
            start_new_session=True,
        )
        if self._leaves.is_set():
            process.terminate()
        url = await self._served_at(process)
        if url is None:
            await self._end()
            return
        self._n_lives += 1
        life = f"{os.getpid()}.{self._n_lives}"
        before = self._watch or Watch(self.name, url, life, client)
        watch = self._watch = replace(before, url=url, life=life, client=client)
        ended = asyncio.create_task(process.wait())
        while not ended.done():
            with contextlib.suppress(httpx2.HTTPError):  # one that does not answer for long is silent to the edges
                self.notice, self.heard_at = await watch.look(), time.monotonic()
            await asyncio.wait({ended}, timeout=LOOK_EVERY_S)

    async def _served_at(self, process: asyncio.subprocess.Process) -> str | None:
        """The address in the greeting; None where the server ended or said nothing in time."""
        if process.stdout is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN_S):
                async for line in process.stdout:
                    if (found := _URL.search(line)) is not None:
                        return found[1].decode()
        return None

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            within_s = 0.0 if self._leaves.is_set() else self._order.drain_s + LOOK_WITHIN_S
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _command(self) -> list[str]:
        named = [] if self._order.config is None else [f"--config={self._order.config}"]
        place = ["--host", self._order.host, "--port", "0", "--log-format", "json", "--exit-with-stdin"]
        return [sys.executable, "-m", "server.cli", "serve", *place, *named]

    def _environment(self) -> dict[str, str]:
        if not self._order.keys:
            return dict(os.environ)
        return {**os.environ, "ONECARD_SERVER__ADMIN_KEYS": json.dumps(self._order.keys)}
