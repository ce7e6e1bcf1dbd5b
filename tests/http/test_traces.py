"""Spans of jobs, as a collector receives them: their times lie in each other, and no word of a prompt is in them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.asker import Asker
from server.traces import JobTrace
from tests.http.conftest import Server, settings

TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "a-word-of-the-prompt"


class Collector(ThreadingHTTPServer):
    """What it was sent, and how to name it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Taking)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    @property
    def spans(self) -> list:
        read = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [span for one in read for held in one.resource_spans for each in held.scope_spans for span in each.spans]


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as taking:
        thread = threading.Thread(target=taking.serve_forever)
        thread.start()
        yield taking
        taking.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sent(collector: Collector, canary_path, tmp_path_factory) -> list:
    """The spans of a load and an answer, of a failure, and of a request that was refused."""
    folder = tmp_path_factory.mktemp("traces")
    chosen = settings(canary_path) | {"traces": {"endpoint": collector.url}}
    broken = folder / "broken.gguf"
    broken.write_bytes(canary_path.read_bytes())
    broken.with_name("broken.gguf.fake").write_text("fail no such thing")
    chosen["models"]["broken"] = {"path": str(broken), "context": 64}
    traced = Server(chosen, folder / "log")
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine-1"}
    body = {"model": "fake", "messages": [{"role": "user", "content": f"{SECRET} and more"}]}
    assert traced.post("/v1/chat/completions", body, headers=headers).status == 200
    assert traced.chat("!raise").status == 500
    asked = {"model": "broken", "messages": [{"role": "user", "content": "x"}]}
    assert traced.post("/v1/chat/completions", asked, headers={"x-request-id": "mine-2"}).status == 503
    assert traced.stop() == 0, traced.log
    assert SECRET.encode() not in b"".join(collector.bodies)
    (failed,) = [line for line in traced.log.splitlines() if " onecard.pool failed " in line]
    assert "request=mine-2" in failed
    return collector.spans


def test_an_answer_has_its_phases_in_the_trace_that_its_client_began(sent):
    whole = next(span for span in sent if span.trace_id.hex() == TRACE and "fake" in span.name)
    phases = {span.name: span for span in sent if span.parent_span_id == whole.span_id}

    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert phases.keys() == {"queue", "load", "prefill", "decode"}
    edges = [
        edge
        for name in ("queue", "load", "prefill", "decode")
        for edge in (phases[name].start_time_unix_nano, phases[name].end_time_unix_nano)
    ]
    assert [whole.start_time_unix_nano, *edges, whole.end_time_unix_nano] == sorted(
        [whole.start_time_unix_nano, *edges, whole.end_time_unix_nano]
    )
    told = {item.key: item.value for item in whole.attributes}
    assert told["onecard.request_id"].string_value == "mine-1"
    assert told["gen_ai.usage.output_tokens"].int_value == 4
    assert told["gen_ai.response.finish_reasons"].array_value.values[0].string_value == "stop"


def test_a_failure_is_told_by_its_code_alone(sent):
    failed = [span for span in sent if span.status.code == 2]
    assert sorted(span.status.message for span in failed) == ["load_failed", "worker_crashed"]
    assert TRACE not in [span.trace_id.hex() for span in failed]


def test_a_job_that_was_never_dispatched_only_queued():
    waited = JobTrace("chat", "m", "j", Asker(), 1.0, None, None, None, 3.0, 0, 0, 0, "queue_full", failed=True)
    assert list(waited.phases()) == [("queue", 1.0, 3.0)]
