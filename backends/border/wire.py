"""Frames between the server and a worker: 4 bytes of length (little endian), then msgpack of one message.

Owns the encoding and its limits. The vocabulary is in `backends.messages`, and what single kinds of jobs add to it in
their lines of `backends.registry.KINDS`; the sockets are in `child` and `link`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Union, get_args

import msgspec

from backends.messages import Command, Failed, Finished, LoadModel, Ready, Report, Started, Step, Submit
from backends.messages.training import TrainCommand, TrainReport
from backends.registry import KINDS

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from backends.messages.plain import Plain

MAX_FRAME_BYTES: Final = 64 * 2**20
"""More than any honest message needs; a longer one is a fault of the sender."""

_LENGTH: Final = struct.Struct("<I")
_RECEIVE_BYTES: Final = 256 * 1024

T = TypeVar("T")


class WireError(Exception):
    """A message that cannot be sent, or bytes that are no message."""


class FrameEncoder:
    """Makes frames; not for two threads at once."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def frame(self, message: Plain) -> bytes:
        """Encode one message with its length. Raises WireError for what msgpack cannot hold or what is too long."""
        try:
            body = self._encoder.encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise WireError(f"the message cannot be encoded ({type(error).__name__})") from error
        if len(body) > MAX_FRAME_BYTES:
            raise WireError(f"the message takes {len(body)} bytes, {MAX_FRAME_BYTES} are allowed")
        return _LENGTH.pack(len(body)) + body


class Decoder(Generic[T]):
    """Turns a byte stream back into messages of one kind, however the bytes are cut."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Take bytes in and return the messages they complete. Raises WireError at the first bad frame."""
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > MAX_FRAME_BYTES:
                raise WireError(f"a frame announces {size} bytes, {MAX_FRAME_BYTES} are allowed")
            end = start + _LENGTH.size + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                messages.append(self._decode(view[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return messages

    def _decode(self, body: memoryview) -> T:
        try:
            with body:
                return self._decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WireError(f"a frame is no valid message ({type(error).__name__})") from error


def report_decoder() -> Decoder[Report]:
    """The server's side."""
    events = _any_of({Started, Finished, Failed, *(part for kind in KINDS.values() for part in kind.parts)})
    facts = _any_of({kind.facts for kind in KINDS.values() if kind.facts is not None})
    step: Any = Step
    ready: Any = Ready
    return Decoder(_any_of({*get_args(Report)} - {step, ready} | {step[events], ready[facts]}))


def command_decoder() -> Decoder[Command]:
    """The worker's side."""
    plans = _any_of({kind.plan for kind in KINDS.values() if kind.plan is not None})
    submit: Any = Submit
    load: Any = LoadModel
    return Decoder(_any_of({*get_args(Command)} - {submit, load} | {submit[_any_of(KINDS)], load[plans]}))


def train_report_decoder() -> Decoder[TrainReport]:
    """The server's side of a training process."""
    return Decoder(TrainReport)


def train_command_decoder() -> Decoder[TrainCommand]:
    """The training process's side."""
    return Decoder(TrainCommand)


def _any_of(types: Iterable[Any]) -> Any:
    """Messages are told apart by their tags."""
    return Union[tuple(types)]  # noqa: UP007 - made at run time


def receive(sock: socket.socket, decoder: Decoder[T]) -> list[T] | None:
    """Block until at least one whole message is there; None at end-of-file."""
    while True:
        try:
            data = sock.recv(_RECEIVE_BYTES)
        except OSError:
            return None
        if not data:
            return None
        if messages := decoder.feed(data):
            return messages
