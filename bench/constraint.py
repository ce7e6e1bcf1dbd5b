"""What constraints cost the engine: tokens per second under a schema, and a new schema beside running streams."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from backends.alone import check, jobs, open_engine, start, vocabulary_size
from backends.engine import AnyEngine
from backends.messages import Constraint, Delta, Generate, JsonSchema
from backends.workload import Workload
from server.bench.figures import median
from server.schemas.json_schema import checked

ENDLESS = {
    "type": "array",
    "minItems": 60_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "size": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1},
            "at": {"type": "string", "format": "date"},
        },
        "required": ["name", "size", "tags", "at"],
        "additionalProperties": False,
    },
}
"""Answers under it go on as long as a stream does."""


def new_schema(number: int) -> dict[str, Any]:
    """About 10 kB that were never seen before."""
    text = {"type": "string", "maxLength": 200, "description": "what a reader has to know about this field"}
    properties = {f"field_{number}_{i}": text for i in range(90)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _form(schema: dict[str, Any]) -> JsonSchema:
    return JsonSchema(checked(schema, "schema").text)


def _rate(engine: AnyEngine, work: Workload, constraint: Constraint | None, seed: int) -> float:
    """Tokens per second over the steps in which every stream decodes."""
    plain = jobs(work, vocabulary_size(engine), first_seed=seed)
    start(engine, [msgspec.structs.replace(job, constraint=constraint) for job in plain])
    micros, tokens = 0, 0
    while not engine.idle:
        step = check(engine.step())
        if step.n_decode == work.streams and not step.n_prefill:
            micros += step.duration_us
            tokens += step.n_decode
    return tokens / (micros / 1e6)


def measure(path: Path, work: Workload, *, rounds: int) -> dict[str, float]:
    """Ratios of tokens per second, a round with and a round without a schema in turn; milliseconds of a new schema."""
    engine = open_engine(path, work)
    form = _form(ENDLESS)
    for constraint in (form, None):
        _rate(engine, work, constraint, 0)
    pairs = [
        (_rate(engine, work, form, i * 100), _rate(engine, work, None, i * 100 + 50)) for i in range(1, rounds + 1)
    ]
    figures = {
        "tokens_per_s": median([free for _, free in pairs]),
        "tokens_per_s_constrained": median([bound for bound, _ in pairs]),
        "ratio": median([bound / free for bound, free in pairs]),
        **_beside(engine, work, rounds),
    }
    engine.close()
    return figures


def _beside(engine: AnyEngine, work: Workload, rounds: int) -> dict[str, float]:
    """A stream with a new schema joins the others: what it waits more than one without, and the others' worst ITL."""
    waits: dict[bool, list[float]] = {True: [], False: []}
    itls: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        constrained = bool(number % 2)
        first, itl = _join(engine, work, number, constrained=constrained)
        waits[constrained].append(first)
        itls[constrained].append(itl)
    return {
        "schema_bytes": float(len(json.dumps(new_schema(1)))),
        "first_token_ms": median(waits[False]),
        "first_token_new_schema_ms": median(waits[True]),
        "worst_itl_ms": max(itls[False]),
        "worst_itl_new_schema_ms": max(itls[True]),
    }


def _join(engine: AnyEngine, work: Workload, number: int, *, constrained: bool) -> tuple[float, float]:
    """Milliseconds from the newcomer's arrival to its first token, and the longest step beside it."""
    *running, newcomer = jobs(work, vocabulary_size(engine), first_seed=1000 + number * work.streams)
    newcomer = msgspec.structs.replace(newcomer, id="newcomer", max_tokens=8, ignore_eos=False)
    start(engine, running)
    while check(engine.step()).n_decode < len(running):
        pass
    prepared: list[Any] = []
    arrived = time.perf_counter()
    thread = threading.Thread(target=lambda: prepared.append(engine.prepare(_with_form(newcomer, number, constrained))))
    thread.start()
    first, longest, added, before = 0.0, 0.0, False, time.perf_counter()
    while not engine.idle:
        if prepared and not added:
            engine.add(prepared[0])
            added = True
        events = check(engine.step()).events
        now = time.perf_counter()
        if not first:
            longest = max(longest, now - before)
            if any(isinstance(event, Delta) and event.id == "newcomer" for event in events):
                first = now - arrived
                for job in running:
                    engine.cancel(job.id)
        before = now
    thread.join()
    return first * 1e3, longest * 1e3


def _with_form(job: Generate, number: int, constrained: bool) -> Generate:
    """The schema is checked here, too: a server does that as well before the first token."""
    return msgspec.structs.replace(job, constraint=_form(new_schema(number)) if constrained else None)
