"""The worker process: one model, one engine, one socket to the server.

Four threads: the reader takes commands and answers pings, two preparers (of short and of long jobs) render and
tokenize, the main thread steps the engine. It never outlives the server: end-of-file on the socket or the parent's
death ends it at once.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from backends import registry
from backends.border.clerk import Clerk, Item
from backends.border.link import (
    EXIT_ENGINE_ERROR,
    EXIT_LOAD_FAILED,
    EXIT_ORPHANED,
    EXIT_OUT_OF_MEMORY,
    Link,
    leave,
    note,
)
from backends.border.load_limit import OverLimitError, limited
from backends.border.outbox import Outbox
from backends.border.wire import command_decoder
from backends.engine import AnyEngine, JobError, LoadError
from backends.machine.crash_reason import LOAD_HINT, in_words
from backends.machine.kernel import call_me, die_with, limit_damage
from backends.machine.started import arguments
from backends.messages import (
    Cancel,
    CutShort,
    Event,
    Keep,
    Keeps,
    LoadFailed,
    LoadModel,
    Preempt,
    Progress,
    Shutdown,
    Step,
)
from backends.prompts.renderer import Renderer, fork_beside, rendering_beside

if TYPE_CHECKING:
    import queue

    from backends.engine import Prepared

_STEPS_PER_COLLECT: Final = 4096
"""The garbage collector runs when the loop is idle, and after this many steps without a pause."""


def run(engine: AnyEngine, link: Link, clerk: Clerk) -> None:
    """Step the engine while it has work and sleep while it has none; returns at `Shutdown`."""
    steps_since_collect = 0
    outbox, idle = Outbox(), engine.idle
    while True:
        arrived = _drain(clerk.inbox, wait=idle) if idle or not clerk.inbox.empty() else []
        if arrived and (told := outbox.flush()) is not None:  # what arrived may make the next step a long one
            link.send_step(told)
        clerk.step_started = time.monotonic()
        events: list[Event] = []
        for item in arrived:
            match item:
                case Shutdown():
                    if events:
                        link.send_step(Step(events=events))
                    return
                case Keep(max_bytes=max_bytes):
                    engine.keep(max_bytes)
                    link.send(Keeps(max_bytes=max_bytes))
                case Cancel(id=job_id):
                    events += engine.cancel(job_id)
                case CutShort(id=job_id, reason=reason):
                    events += engine.cut_short(job_id, reason)
                case Preempt(id=job_id):
                    events += engine.preempt(job_id)
                case _:
                    events += _add(engine, item)
        report = Step() if arrived and engine.idle else engine.step()
        idle = engine.idle
        if events:
            report = msgspec.structs.replace(report, events=events + report.events)
        clerk.step_started = None
        if report.events or report.n_decode or report.n_prefill or report.n_inputs or report.kv_total:
            told = outbox.put(report, time.monotonic(), idle=idle)
            if told is not None:
                link.send_step(told)
        steps_since_collect += 1
        if idle or steps_since_collect >= _STEPS_PER_COLLECT:
            gc.collect(1)
            steps_since_collect = 0


def _drain(inbox: queue.SimpleQueue[Item], *, wait: bool) -> list[Item]:
    arrived = [inbox.get()] if wait else []
    while not inbox.empty():  # no other thread takes from it
        arrived.append(inbox.get_nowait())
    return arrived


def _add(engine: AnyEngine, prepared: Prepared) -> list[Event]:
    try:
        return engine.add(prepared)
    except JobError as error:
        return [error.failed(prepared.id)]


def _load(spec: LoadModel, link: Link, renderer: Renderer | None) -> tuple[AnyEngine, float]:
    """The engine, and the seconds its load took."""
    try:
        load = registry.engine_of(spec.backend)
        began = time.monotonic()
        # An engine of the tests says itself when memory is short, and takes none.
        limit_bytes = 0 if registry.TEST_ENGINE in os.environ else spec.limit_bytes
        with rendering_beside(renderer), limited(limit_bytes):
            engine = load(spec, lambda fraction: link.send(Progress(fraction=fraction)))
        return engine, time.monotonic() - began
    except LoadError as error:
        failure = LoadFailed(code="out_of_memory" if error.out_of_memory else "load_failed", message=error.message)
    except OverLimitError:
        failure = LoadFailed(code="load_failed", message=_over(spec.limit_bytes))
    except MemoryError:
        failure = LoadFailed(code="out_of_memory", message="the machine ran out of memory while the model was loaded")
    except BaseException as error:  # whatever a bad file makes a library raise is a failed load, not a crash
        note(error)
        failure = LoadFailed(
            code="load_failed", message=f"the engine could not load it: {in_words(error)}. {LOAD_HINT}"
        )
    link.send(failure)
    return leave(EXIT_LOAD_FAILED)


def _over(limit_bytes: int) -> str:
    return (
        f"its load wants more than {limit_bytes / 2**30:.1f} GiB of memory, several times what its files are estimated "
        "at. hint: a figure in config.json or in the header is damaged; take the publisher's files"
    )


def serve(fd: int, server_pid: int) -> NoReturn:
    """Be a worker on a socket until the server shuts it down or is gone."""
    die_with(server_pid, status=EXIT_ORPHANED)
    limit_damage()
    call_me(b"onecard-worker")
    os.set_inheritable(fd, False)
    link = Link(socket.socket(fileno=fd), command_decoder())
    first, *rest = link.receive()
    if isinstance(first, Shutdown):
        leave(0)
    if not isinstance(first, LoadModel):
        leave(EXIT_ENGINE_ERROR)
    renderer = None if registry.TEST_ENGINE in os.environ else fork_beside(keep_out=fd)
    clerk = Clerk(link)
    clerk.start(rest)
    engine, load_s = _load(first, link, renderer)
    gc.collect()
    gc.freeze()
    gc.disable()  # a full collection takes longer than a decode step; `run` collects between steps
    clerk.serve(engine)
    link.send(msgspec.structs.replace(engine.ready(), load_s=load_s))
    try:
        run(engine, link, clerk)
        engine.close()
    except BaseException as error:  # the engine's state is unknown now: the server starts a new worker
        note(error)
        leave(EXIT_OUT_OF_MEMORY if isinstance(error, MemoryError) else EXIT_ENGINE_ERROR)
    leave(0)


def main() -> NoReturn:
    """Run a worker on the socket `--fd`."""
    args = arguments("onecard-worker")
    serve(args.fd, args.parent)


if __name__ == "__main__":
    main()
