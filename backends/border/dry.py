"""The server's side of dry loads: asks a short-lived child what plans would take, and survives whatever it does.

For the event loop's thread only. What the child does is the backend's business (`Backend.dry`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from backends.border.child import run_module
from backends.machine.crash_reason import REASON_CHARS, clean
from backends.messages import Device, GeneratorPlan, TextPlan

ANSWER_WITHIN_S: Final = 20.0
_MOST_ANSWER_BYTES: Final = 1 << 20
_PART_BYTES: Final = 1 << 16
_LOG = logging.getLogger("onecard.dry")


@dataclass(frozen=True)
class DryQuestion:
    """Plans of one model, all with the same weights on the GPU."""

    module: str
    """The program that answers."""
    path: Path
    plans: tuple[TextPlan, ...]

    def encode(self) -> bytes:
        """One line."""
        plans = [msgspec.to_builtins(plan) for plan in self.plans]
        layers = self.plans[0].gpu_layers if self.plans[0].device == "cuda" else 0
        first = self.plans[0]
        kept = first.host_tensors if isinstance(first, GeneratorPlan) else ()
        question = {"path": str(self.path), "gpu_layers": layers, "host_tensors": kept, "plans": plans}
        return json.dumps(question).encode() + b"\n"


@dataclass(frozen=True)
class DrySizes:
    """What a plan would take, in bytes."""

    weights: int
    cache: int
    compute: dict[str, int]
    """Buffers of computation and output by the device that llama.cpp names."""

    def on(self, device: Device) -> dict[str, int]:
        """As plain figures of a machine with or without a card; `host_compute` is what a card's machine adds."""
        on_card = {n for n in self.compute if n.startswith("CUDA") and n != "CUDA_Host"} if device == "cuda" else set()
        off_card = sum(n_bytes for name, n_bytes in self.compute.items() if name not in on_card)
        plain = {"weights": self.weights, "cache": self.cache}
        if device == "cpu":
            return {**plain, "compute": off_card}
        return {**plain, "compute": sum(self.compute[name] for name in on_card), "host_compute": off_card}


Answer = tuple[DrySizes | None, ...]
"""Per plan; None where llama.cpp refused it, or the child did not live to tell."""


async def ask(
    questions: Sequence[DryQuestion],
    *,
    within_s: float = ANSWER_WITHIN_S,
    on_refused: Callable[[DryQuestion, str], None] = lambda _question, _why: None,
) -> AsyncGenerator[tuple[DryQuestion, Answer], None]:
    """Ask one child after the other; each question is answered once, also when it kills its child.

    `on_refused` hears of models that the engine refuses whatever the plan, with its sentence.
    """
    left = sorted(questions, key=lambda question: question.module)
    while left:
        n_answered = 0
        module = left[0].module
        async with _child(module) as line:
            for question in next(of_one for _, of_one in itertools.groupby(left, lambda q: q.module)):
                answer = await _answer(line, question, within_s, on_refused)
                if answer is None:
                    break
                n_answered += 1
                yield question, answer
        left = left[n_answered:]
        if left and left[0].module == module:
            culprit = left.pop(0)
            _LOG.warning("dry_load_failed file=%s hint=%s", culprit.path.name, "computed from its header instead")
            yield culprit, tuple(None for _ in culprit.plans)


async def _answer(
    line: socket.socket, question: DryQuestion, within_s: float, on_refused: Callable[[DryQuestion, str], None]
) -> Answer | None:
    """None when the child is dead, hung or out of its mind."""
    loop = asyncio.get_running_loop()
    told = bytearray()
    try:
        async with asyncio.timeout(within_s):
            await loop.sock_sendall(line, question.encode())
            while not told.endswith(b"\n"):
                part = await loop.sock_recv(line, _PART_BYTES)
                if not part or len(told) + len(part) > _MOST_ANSWER_BYTES:
                    return None
                told += part
        document = json.loads(told)
        answer = _decode(document, len(question.plans))
        if why := clean(str(document.get("error", "")), most_chars=REASON_CHARS):
            on_refused(question, why)
        return answer
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TimeoutError):
        return None


def _decode(told: dict[str, Any], n_plans: int) -> Answer:
    if "error" in told:
        return (None,) * n_plans
    plans = [_sizes(int(told["weights"]), plan) if plan is not None else None for plan in told["plans"]]
    if len(plans) != n_plans:
        raise ValueError("the child answered another question")
    return tuple(plans)


def _sizes(weights: int, plan: dict[str, Any]) -> DrySizes:
    compute: dict[str, int] = {}
    for kind in ("compute", "output"):
        for name, n_bytes in plan[kind].items():
            compute[str(name)] = compute.get(str(name), 0) + int(n_bytes)
    return DrySizes(weights, int(plan["cache"]), compute)


@contextlib.asynccontextmanager
async def _child(module: str) -> AsyncIterator[socket.socket]:
    """A line to a child, which is gone at its end."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            running = run_module(module, theirs.fileno())
        try:
            yield ours
        finally:
            await running.end()
