"""Frames: what goes in comes out however the bytes are cut, and nonsense is a WireError and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.border.link import Link
from backends.border.wire import MAX_FRAME_BYTES, FrameEncoder, WireError, command_decoder, report_decoder
from backends.diffusion.kind import Picture
from backends.messages import (
    ChatPrompt,
    Delta,
    Event,
    Failed,
    Finished,
    Generate,
    Ping,
    Sampling,
    Started,
    Step,
    Submit,
    TokenLogprob,
)

STEP: Step[Event] = Step(
    events=[
        Started(id="a", prompt_tokens=3),
        Delta(id="a", index=0, text="žluťoučký", n_tokens=2, logprobs=[TokenLogprob("x", -1.5, b"\xff\x00")]),
        Finished(id="a", prompt_tokens=3, completion_tokens=2),
        Failed(id="b", code="cancelled", message="no"),
    ],
    n_decode=1,
)
JOB = Generate(
    id="j",
    prompt=ChatPrompt(messages=[{"role": "user", "content": "hi", "tool_calls": [{"deep": {"er": [1, None, 2.5]}}]}]),
    sampling=Sampling(logit_bias={5: -100.0}, seed=-(2**63)),
)


def test_images_that_are_more_than_a_frame_come_one_by_one() -> None:
    """Given a step whose images are larger together than a frame may be, then all of its events come, in order."""
    server, worker = socket.socketpair()
    size = MAX_FRAME_BYTES // 3 + 1
    pictures = [Picture(str(i), bytes([i]) * size, 8, 8, 0.5) for i in range(3)]
    step: Step[Event] = Step(events=[event for one in pictures for event in (one, Finished(one.id))], n_inputs=3)
    server.settimeout(20)
    with server, worker:
        sending = threading.Thread(target=Link(worker, command_decoder()).send_step, args=(step,))
        sending.start()
        decoder, got = report_decoder(), list[Step[Event]]()
        while sum(len(one.events) for one in got) < len(step.events):
            got += [report for report in decoder.feed(server.recv(1 << 20)) if isinstance(report, Step)]
        sending.join()
    assert [event for one in got for event in one.events] == step.events
    assert sum(one.n_inputs for one in got) == 3


def test_commands_and_reports_survive_the_wire() -> None:
    encoder = FrameEncoder()
    assert report_decoder().feed(encoder.frame(STEP)) == [STEP]
    assert command_decoder().feed(encoder.frame(Submit(job=JOB))) == [Submit(job=JOB)]


@given(st.lists(st.integers(1, 400), max_size=30))
def test_bytes_may_be_cut_anywhere(cuts: list[int]) -> None:
    stream = FrameEncoder().frame(STEP) * 3
    decoder = report_decoder()
    got = []
    for size in [*cuts, len(stream)]:
        got += decoder.feed(stream[:size])
        stream = stream[size:]
    assert got == [STEP] * 3


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_waited_for(data: bytes) -> None:
    for decoder in (report_decoder(), command_decoder()):
        with contextlib.suppress(WireError):
            decoder.feed(struct.pack("<I", len(data)) + data)
            decoder.feed(data)


@settings(max_examples=300)
@given(st.data())
def test_flipped_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    frame = bytearray(FrameEncoder().frame(STEP))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(4, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        report_decoder().feed(bytes(frame))


def test_announced_length_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="are allowed"):
        report_decoder().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_command_is_no_report() -> None:
    with pytest.raises(WireError):
        report_decoder().feed(FrameEncoder().frame(Ping()))


def test_deeply_nested_body_is_refused() -> None:
    body = b"\x91" * 200_000 + b"\x00"
    with pytest.raises(WireError):
        report_decoder().feed(struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize("value", ["\ud800", 10**30, object(), {"x": 2**64}])
def test_what_msgpack_cannot_hold_is_a_wire_error(value: object) -> None:
    job = Generate(id="j", prompt=ChatPrompt(messages=[{"role": "user", "content": value}]))
    with pytest.raises(WireError):
        FrameEncoder().frame(Submit(job=job))


def test_too_long_a_message_is_a_wire_error() -> None:
    job = Generate(id="j", prompt=ChatPrompt(messages=[{"role": "user", "content": "x" * MAX_FRAME_BYTES}]))
    with pytest.raises(WireError, match="are allowed"):
        FrameEncoder().frame(Submit(job=job))


def test_messages_refuse_unknown_fields() -> None:
    body = msgspec.msgpack.encode({"type": "pong", "step_age_s": 0.0, "surprise": 1})
    with pytest.raises(WireError):
        report_decoder().feed(struct.pack("<I", len(body)) + body)


def test_handle_and_wire_import_no_heavy_library() -> None:
    code = "import sys, backends.border.worker, backends.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "llama_cpp", "jinja2", "torch", "gguf", "fastapi", "pydantic"}
