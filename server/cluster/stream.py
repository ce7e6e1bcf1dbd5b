"""An event stream on its way through the edge: what may pass before the first token, and how one ends that broke. Pure.

Events that carry no token are held back, so that a request whose node dies before its first token can begin anew
elsewhere. Signs of life pass at once.
"""

from __future__ import annotations

import json
import re
from typing import Final

import jiter

from server.error_bodies import Dialect, anthropic_error
from server.errors import ApiError
from server.scheduling.job_ends import SHUTTING_DOWN

SIGN_EVERY_S: Final = 10.0
"""What is held back is no sign of life to its client; then this is."""
MOST_HELD_BYTES: Final = 2**20
"""Of an event that is not whole yet."""
SIGN: Final = b": waiting\n\n"
_SIGNS: Final = re.compile(rb"\A(?::|event: ping\b)")
_BEFORE_TOKENS: Final = re.compile(
    rb"\Aevent: (?:message_start|content_block_start|response\.(?:created|queued|in_progress|output_item\.added"
    rb"|content_part\.added))\n"
    rb'|\Adata: .*"delta":\{"role":"assistant","content":""\}'
)
_REFUSALS: Final = re.compile(
    rb'\A(?:event: error\n)?data: (?=\{"error":|\{"type":"error").*"code":"'
    rb'(?:draining|memory_busy|queue_timeout|load_failed|quarantined|out_of_memory)"'
    rb"|\Aevent: response\.failed\n.*" + re.escape(SHUTTING_DOWN.encode()),
    re.DOTALL,
)
"""What a server that answers 503 says once its stream has shown life."""


class Held:
    """The end of one stream that has not passed yet: all before its first token, then what is no whole event."""

    def __init__(self, *, ends: bytes = b"\n\n", begun: bool = False) -> None:
        """`ends` is what ends an event; nothing where the stream is made of none. `begun`: the first is a token."""
        self.begun = begun
        """A token has passed, or something that may be one."""
        self.torn = False
        """The client has a part of an event."""
        self._ends = ends
        self.refusal: bytes | None = None
        """The error in place of the first token, as JSON, where another node may give one."""
        self._rest = b""
        self._held: list[bytes] = []

    @property
    def holds(self) -> bool:
        """Something waits for a token."""
        return bool(self._held)

    def take(self, data: bytes) -> bytes:
        """What may pass now."""
        if self.begun:
            return self._whole(data)
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        passing: list[bytes] = []
        for place, frame in enumerate(frames):
            if _SIGNS.match(frame):
                passing.append(frame + b"\n\n")
            elif _BEFORE_TOKENS.match(frame):
                self._held.append(frame + b"\n\n")
            elif _REFUSALS.match(frame):
                self.refusal = _error_of(frame)
                break
            else:
                rest = [one + b"\n\n" for one in frames[place:]]
                return b"".join([*passing, self.release(), *rest])
        return b"".join(passing)

    def _whole(self, data: bytes) -> bytes:
        """Events that have come whole: where their node is lost, the last one is, too. A very long one is not held."""
        if not self._ends:
            return data
        self._rest += data
        end = self._rest.rfind(self._ends)
        if end >= 0:
            end += len(self._ends)
        elif self.torn or len(self._rest) > MOST_HELD_BYTES:
            end = max(0, len(self._rest) - len(self._ends) + 1)
        else:
            return b""
        passing, self._rest = self._rest[:end], self._rest[end:]
        self.torn = not passing.endswith(self._ends)
        return passing

    def release(self) -> bytes:
        """All that is held back; from now on everything passes, and nothing can begin anew."""
        self.begun = True
        held, self._held = b"".join(self._held), []
        return held

    def finish(self) -> bytes:
        """The stream has ended as it should."""
        held = b"" if self.begun else self.release()
        rest, self._rest = self._rest, b""
        return held + rest


def _error_of(frame: bytes) -> bytes:
    try:
        told = jiter.from_json(frame.partition(b"data: ")[2])
        error = told["response"]["error"] if "response" in told else told["error"]
        return json.dumps({"error": {"type": "server_error", "param": None, **error}}).encode()
    except (ValueError, KeyError, TypeError):  # it looked like one
        return b'{"error":{"type":"server_error","param":null,"code":"draining","message":"the node ends"}}'


def broken(problem: ApiError, *, path: str, dialect: Dialect, request_id: str) -> bytes:
    """The last bytes of a stream whose node died after its first token, as the client of this path reads them."""
    if dialect == "ollama":
        return json.dumps({"error": problem.message}).encode() + b"\n"
    if dialect == "anthropic":
        return b"event: error\ndata: " + json.dumps(anthropic_error(problem, request_id)).encode() + b"\n\n"
    if path == "/v1/responses":
        told = {"type": "error", **problem.as_dict(), "sequence_number": 0}
        return b"event: error\ndata: " + json.dumps({**told, "type": "error"}).encode() + b"\n\n"
    return b"data: " + problem.body() + b"\n\n"
