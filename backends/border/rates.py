"""The server's side of measuring a machine: asks a short-lived child of a backend, and does without where it fails.

For the event loop's thread only. What the child measures is the backend's business (`Backend.speeds`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Final

import msgspec

from backends.border.child import run_module
from backends.speed import Machine

WITHIN_S: Final = 30.0
"""For imports and the measurement, on a machine that has other things to do."""
_MOST_BYTES: Final = 1 << 16
_LOG = logging.getLogger("onecard.rates")


async def ask(program: str, *, within_s: float = WITHIN_S) -> Machine | None:
    """What this machine does for the engine of that program; None where the child does not tell."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            running = run_module(program, theirs.fileno())
        try:
            return await asyncio.wait_for(_answer(ours), within_s)
        except (OSError, TimeoutError, msgspec.DecodeError, msgspec.ValidationError) as problem:
            _LOG.warning("rates_unknown program=%s reason=%r", program, type(problem).__name__)
            return None
        finally:
            await running.end()


async def _answer(line: socket.socket) -> Machine:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, json.dumps({}).encode() + b"\n")
    told = bytearray()
    while not told.endswith(b"\n"):
        part = await loop.sock_recv(line, _MOST_BYTES)
        if not part or len(told) > _MOST_BYTES:
            raise ConnectionError("the child ended before it answered")
        told += part
    return msgspec.json.decode(told, type=Machine)
