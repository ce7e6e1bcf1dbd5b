"""The load generator reads streams as they were sent, however the bytes are cut."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Iterator

import pytest

from bench.figures import emit, missed
from server.bench.figures import median, percentile
from server.bench.load import chat, run, summary

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(content: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": piece}}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
DONE = b"data: [DONE]\n\n"


def chunked(*contents: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(content), content) for content in (*contents,)) + b"0\r\n\r\n"


@contextlib.contextmanager
def answering(wire: bytes, *, cut: int) -> Iterator[str]:
    """A listener that sends `wire` in pieces of `cut` bytes to each that connects, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        client.recv(65536)
                        for start in range(0, len(wire), cut):
                            client.sendall(wire[start : start + cut])

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("cut", [1, 7, 4096])
def test_text_times_and_usage_survive_any_cut(cut: int) -> None:
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    wire = HEAD + chunked(role, b": loading\n\n", text("a"), text("ö") + text("c"), USAGE, DONE)
    with answering(wire, cut=cut) as url:
        answers = run(url, [chat("m", "hi", 3), chat("m", "hi", 3, at_s=0.05)], timeout_s=20)

    assert [(answer.text, answer.error) for answer in answers] == [("aöc", None)] * 2
    assert [len(answer.text_at_s) for answer in answers] == [3, 3]
    assert answers[1].sent_s >= 0.05
    assert summary(answers)["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (HEAD + chunked(text("a"), event({"error": {"message": "it broke"}}), DONE), "it broke"),
        (HEAD + chunked(text("a")), "without [DONE]"),
        (HEAD + chunked(text("a"))[:-20], "without [DONE]"),
        (b"HTTP/1.1 503 Busy\r\n\r\n{}", "503 Busy"),
        (b'HTTP/1.1 400 Bad\r\nserver: x\r\n\r\n{"error": {"message": "no text"}}', "400 Bad: no text"),
        (b"", "no answer"),
    ],
)
def test_stream_that_failed_is_an_error(wire: bytes, words: str) -> None:
    with answering(wire, cut=4096) as url:
        answers = run(url, [chat("m", "hi", 3)], timeout_s=20)

    with pytest.raises(RuntimeError, match="1 of 1 requests failed"):
        summary(answers)
    assert words in str(answers[0].error)


def test_a_figure_beyond_its_limit_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"gap": 3.0, "gap_limit": 2.0, "rate_ratio": 0.96, "rate_ratio_limit": 0.95, "n": 1.0, "n_limit": 1.0}
    assert missed(figures) == ["gap"]
    assert missed({**figures, "rate_ratio": 0.94}) == ["gap", "rate_ratio"]
    emit(figures, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "MISSED" in line] == [f"{'gap':28} 3  MISSED"]
    assert lines[-1] == "missed: gap"


def test_percentile_is_a_measured_value() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(list(range(1, 101)), 99) == 99
    assert math.isnan(percentile([], 99))
    assert median([1, 2]) == 1.5
