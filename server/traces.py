"""OpenTelemetry traces: for each job a span, and in it queue, load, prefill and decode. Never a prompt or an answer.

The spans are made when the job has ended, of times that the pool knows anyway. OpenTelemetry is an extra of the
installation and is imported where the configuration names a collector.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.asker import Asker
    from server.settings.sections import TracesSection

_EXPORT_WITHIN_S: Final = 2.0
_EVERY_MS: Final = 1000
_END_WITHIN_S: Final = 4.0


class TracesError(Exception):
    """Traces are configured and cannot be sent; the text is a sentence for the operator."""


@dataclass(frozen=True)
class JobTrace:
    """A job that has ended. Times are seconds on the pool's clock; None for what was not reached."""

    kind: str
    model: str
    job_id: str
    asker: Asker
    submitted_at: float
    dispatched_at: float | None
    load_s: float | None
    """What it has waited for its model's load, right before it was dispatched."""
    first_at: float | None
    ended_at: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    outcome: str
    """How it ended, or the code of its failure."""
    failed: bool

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """Name, begin and end of each span inside."""
        loaded = self.ended_at if self.dispatched_at is None else self.dispatched_at
        queued = loaded - (self.load_s or 0.0)
        yield "queue", self.submitted_at, max(self.submitted_at, queued)
        if self.load_s:
            yield "load", max(self.submitted_at, queued), loaded
        if self.dispatched_at is None:
            return
        answered = self.ended_at if self.first_at is None else self.first_at
        yield "prefill", self.dispatched_at, answered
        if self.first_at is not None:
            yield "decode", self.first_at, self.ended_at

    def attributes(self) -> dict[str, Any]:
        """By OpenTelemetry's names for generative models, where it has one."""
        return {
            "gen_ai.operation.name": self.kind,
            "gen_ai.request.model": self.model,
            "gen_ai.response.finish_reasons": [self.outcome],
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.completion_tokens,
            "onecard.cached_tokens": self.cached_tokens,
            "onecard.request_id": self.asker.request_id,
            "onecard.job_id": self.job_id,
        }


class Traces:
    """Sends spans to one collector, from a thread of its own."""

    def __init__(self, section: TracesSection) -> None:
        """Raises TracesError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise TracesError(
                "[traces] names a collector, and OpenTelemetry is not installed. hint: pip install 'onecard[traces]'"
            ) from None
        exporter = OTLPSpanExporter(endpoint=section.endpoint, timeout=_EXPORT_WITHIN_S)
        named = Resource.create({"service.name": "onecard", "service.version": version("onecard")})
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS))
        self._tracer = self._provider.get_tracer("onecard")

    def job(self, done: JobTrace, now: float) -> None:
        """The spans of one job. `now` is this moment on the pool's clock."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset_ns = time.time_ns() - round(now * 1e9)

        def ns(moment: float) -> int:
            return offset_ns + round(moment * 1e9)

        begun = {"traceparent": done.asker.traceparent} if done.asker.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(begun)
        whole = self._tracer.start_span(
            f"{done.kind} {done.model}",
            parent,
            kind=SpanKind.SERVER,
            attributes=done.attributes(),
            start_time=ns(done.submitted_at),
        )
        if done.failed:
            whole.set_status(Status(StatusCode.ERROR, done.outcome))
        inside = set_span_in_context(whole)
        for name, begin, end in done.phases():
            self._tracer.start_span(name, inside, start_time=ns(begin)).end(end_time=ns(end))
        whole.end(end_time=ns(done.ended_at))

    async def close(self) -> None:
        """Send what is left, unless the collector does not answer in time."""
        closing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({closing}, timeout=_END_WITHIN_S)


def open_traces(section: TracesSection) -> Traces | None:
    """None where no collector is configured. Raises TracesError."""
    return None if section.endpoint is None else Traces(section)
