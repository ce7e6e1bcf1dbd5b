"""The load generator: many streaming chat requests from one thread, cheap enough to share two cores with the server.

While it runs it only stores what each `recv` returned and when. Chunks, events, text and usage are read from that
afterwards, so that measuring costs the measured server almost nothing.
"""

from __future__ import annotations

import heapq
import json
import selectors
import socket
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from server.bench.figures import median, percentile


@dataclass(frozen=True)
class SentRequest:
    """One request: its JSON body, and when it is sent, in seconds from the start of the run."""

    body: dict[str, Any]
    at_s: float = 0.0
    path: str = "/v1/chat/completions"
    background: bool = False
    """Cut off as soon as every request that is not background has ended."""


@dataclass
class Answer:
    """What one request got, in seconds from the start of the run."""

    request: SentRequest
    sent_s: float = 0.0
    text_at_s: list[float] = field(default_factory=list)
    """When each event that carries text arrived."""
    ended_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""
    error: str | None = None
    cut: bool = False
    """A background request that was cut off; what came until then counts."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token; NaN without any."""
        return self.text_at_s[0] - self.sent_s if self.text_at_s else float("nan")

    @property
    def itls_s(self) -> list[float]:
        """Seconds between events that carry text."""
        return [later - earlier for earlier, later in zip(self.text_at_s, self.text_at_s[1:], strict=False)]


@dataclass
class _Connection:
    answer: Answer
    socket: socket.socket
    pieces: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def run(url: str, requests: Sequence[SentRequest], *, timeout_s: float = 300, key: str | None = None) -> list[Answer]:
    """Send every request at its time and read all answers to their ends. Raises TimeoutError, OSError."""
    target = urlsplit(url)
    address = (target.hostname or "127.0.0.1", target.port or 80)
    waiting = [(request.at_s, order, Answer(request)) for order, request in enumerate(requests)]
    answers = [answer for _, _, answer in waiting]
    wires = {id(answer): _encode(answer.request, target.netloc, key) for answer in answers}
    heapq.heapify(waiting)
    done: list[_Connection] = []
    n_open = 0
    n_awaited = sum(not request.background for request in requests)
    started = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        while waiting or n_open:
            now = time.perf_counter() - started
            while waiting and waiting[0][0] <= now:
                answer = heapq.heappop(waiting)[2]
                connection = socket.create_connection(address)
                answer.sent_s = time.perf_counter() - started
                connection.sendall(wires[id(answer)])
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ, _Connection(answer, connection))
                n_open += 1
            pause = waiting[0][0] - now if waiting else timeout_s - now
            if now > timeout_s:
                raise TimeoutError(f"{n_open} of {len(answers)} answers had not ended after {timeout_s} s")
            for event, _ in selector.select(max(pause, 0)):
                if _receive(event.data, started, selector, done):
                    n_open -= 1
                    n_awaited -= not event.data.answer.request.background
            if n_awaited == 0:
                waiting.clear()
                n_open -= _cut(selector, started, done)
    for item in done:
        _read(item)
    return answers


def _receive(item: _Connection, started: float, selector: selectors.BaseSelector, done: list[_Connection]) -> bool:
    """Store what arrived; True when it was the end."""
    try:
        data = item.socket.recv(65536)
    except ConnectionResetError:
        data = b""
    item.times.append(time.perf_counter() - started)
    item.pieces.append(data)
    if data:
        return False
    _end(item, selector, done)
    return True


def _cut(selector: selectors.BaseSelector, started: float, done: list[_Connection]) -> int:
    """Hang up on the background requests that still run; how many."""
    running = [event.data for event in selector.get_map().values()]
    for item in running:
        item.answer.cut = True
        item.times.append(time.perf_counter() - started)
        item.pieces.append(b"")
        _end(item, selector, done)
    return len(running)


def _end(item: _Connection, selector: selectors.BaseSelector, done: list[_Connection]) -> None:
    selector.unregister(item.socket)
    item.socket.close()
    done.append(item)


def _encode(request: SentRequest, host: str, key: str | None) -> bytes:
    body = json.dumps(request.body).encode()
    right = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{right}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _chunks(raw: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Whole HTTP chunks of a body that begins at `start`: the offset of each one's end, and its content."""
    while (line := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line], 16)
        end = line + 2 + size
        if size == 0 or end > len(raw):
            return
        yield end, raw[line + 2 : end]
        start = end + 2


def _read(item: _Connection) -> None:
    """Fill the answer from what was stored."""
    answer, raw = item.answer, b"".join(item.pieces)
    answer.ended_s = item.times[-1]
    ends: list[int] = []
    for piece in item.pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    head, _, _ = raw.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not raw and answer.cut:
        return
    if status != [b"200"] or b"chunked" not in head.lower():
        answer.error = _refusal(raw)
        return
    rest = b""
    for end, content in _chunks(raw, len(head) + 4):
        *events, rest = (rest + content).split(b"\n\n")
        at_s = item.times[bisect_left(ends, end)]
        for event in events:
            _read_event(answer, event, at_s)
    if not answer.cut and b"data: [DONE]" not in raw[-200:]:
        answer.error = answer.error or "the stream ended without [DONE]"


def _refusal(raw: bytes) -> str:
    """What an answer that is no stream says: the message of an error's body, or the beginning of what came."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = b"".join(content for _, content in _chunks(raw, len(head) + 4))
    line = head.split(b"\r\n", 1)[0].decode(errors="replace").removeprefix("HTTP/1.1 ")
    try:
        return f"{line}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{line} {body[:200].decode(errors='replace')}".strip() or "no answer"


def _read_event(answer: Answer, event: bytes, at_s: float) -> None:
    if not event.startswith(b"data: {"):
        return
    content = json.loads(event[6:])
    if "error" in content:
        answer.error = content["error"]["message"]
    if usage := content.get("usage"):
        answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in content.get("choices", ()):
        if text := choice.get("delta", {}).get("content") or choice.get("text"):
            answer.text_at_s.append(at_s)
            answer.text += text


def chat(
    model: str, prompt: str, n_tokens: int, *, temperature: float = 0.0, top_p: float = 1.0, at_s: float = 0.0
) -> SentRequest:
    """A streaming chat request of a fixed length."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": n_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    return SentRequest(body, at_s)


def completion(
    model: str, tokens: Sequence[int], n_tokens: int, *, at_s: float = 0.0, background: bool = False
) -> SentRequest:
    """A streaming, greedy completion of exactly these tokens, of a fixed length."""
    body = {
        "model": model,
        "prompt": list(tokens),
        "max_tokens": n_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    return SentRequest(body, at_s, "/v1/completions", background)


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Throughput over the whole run, times to first token and ITLs. Raises RuntimeError for any error."""
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(answers)} requests failed, the first with: {errors[0]}")
    n_tokens = sum(answer.completion_tokens for answer in answers)
    began, ended = min(answer.sent_s for answer in answers), max(answer.ended_s for answer in answers)
    first = [answer.ttft_s for answer in answers]
    itls = [itl for answer in answers for itl in answer.itls_s]
    return {
        "tokens_per_s": n_tokens / (ended - began),
        "completion_tokens": float(n_tokens),
        "prompt_tokens": float(sum(answer.prompt_tokens for answer in answers)),
        "ttft_p50_ms": median(first) * 1e3,
        "ttft_p99_ms": percentile(first, 99) * 1e3,
        "itl_p50_ms": median(itls) * 1e3,
        "itl_p99_ms": percentile(itls, 99) * 1e3,
        "itl_max_ms": max(itls, default=float("nan")) * 1e3,
    }
