"""The Prometheus page: every series of every model in the catalogue, counted from the events that pass the pool.

Owns names, labels and buckets. One registry per instance. Label values come from the catalogue, never from a client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Final, assert_never, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from backends.messages import Delta, Event, Failed, Finished, Part, Started, Step
from backends.registry import BACKENDS
from server.exposition import Exposition
from server.scheduling.decisions import ModelState, UnloadReason
from server.tally import Tally, TallyFamily

if TYPE_CHECKING:
    from backends.kinds import Series

PARTS: Final = ("weights", "kv", "compute", "projector", "runtime")
MEMORIES: Final = ("device", "host")
"""Of a card, and of the machine; without a card all is host memory."""
LOAD_OUTCOMES: Final = ("ok", "oom", "error", "timeout", "cancelled")
REJECTIONS: Final[Mapping[str, str]] = {
    "queue_full": "queue_full",
    "context_length_exceeded": "too_long",
    "cannot_fit": "cannot_fit",
    "draining": "draining",
}
"""Error code -> the metric's reason."""
FINISHED_REASONS: Final = ("stop", "length", "tool_calls", "abort", "error")
CUT_SHORT: Final = ("request_timeout", "out_of_memory")
"""Why an answer ended before the model or `max_tokens` ended it, as far as it had come."""

_ERROR_RATIOS: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.5, 2)
_LOAD_S: Final = (0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300)
_ITL_S: Final = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5),
)
_BATCH: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# vLLM's edges, so that its dashboards work
_TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_REQUEST_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_VLLM: Final = re.compile(
    r"\bonecard_(?=(num_requests_(running|waiting)|kv_cache_usage_perc|num_preemptions|prefix_cache_(queries|hits)"
    r"|prompt_tokens|generation_tokens|request_success|time_to_first_token_seconds|inter_token_latency_seconds"
    r"|e2e_request_latency_seconds|request_queue_time_seconds)(_total|_created|_bucket|_sum|_count)?\b)"
)


@dataclass
class ModelMetrics:
    """The series of one model, looked up once."""

    running: Gauge
    waiting: Gauge
    time_to_first_token: Histogram
    inter_token: Tally
    end_to_end: Histogram
    queue_time: Histogram
    batch_sequences: Tally
    kv_usage: Gauge
    preemptions: Counter
    prefix_queries: Counter
    prefix_hits: Counter
    prompt_tokens: Counter
    generation_tokens: Counter
    load_seconds: Histogram
    swap_wait: Histogram
    crashes: Counter
    measured_bytes: Mapping[str, Gauge]
    """By memory."""
    gpu_layers: Gauge
    layers: Gauge
    predicted_bytes: Mapping[tuple[str, str], Gauge]
    """By memory and part."""
    states: Mapping[ModelState, Gauge]
    loads: Mapping[str, Counter]
    evictions: Mapping[str, Counter]
    rejections: Mapping[str, Counter]
    finished: Mapping[str, Counter]
    cut_short: Mapping[str, Counter]

    def step(self, step: Step) -> None:
        """Count an engine step."""
        if step.batches:
            for n_sequences in step.batches:
                if n_sequences:
                    self.batch_sequences.observe(n_sequences)
        elif n_sequences := step.n_decode + step.n_embedded:
            self.batch_sequences.observe(n_sequences)
        if step.kv_total:
            self.kv_usage.set(step.kv_used / step.kv_total)

    def publish(self, state: ModelState, *, running: int, waiting: int) -> None:
        """Show the model as it is now."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.state(state)

    def state(self, now: ModelState) -> None:
        """Show where the model is."""
        for state, gauge in self.states.items():
            gauge.set(1 if state is now else 0)


class Metrics:
    """One registry with everything in it."""

    def __init__(self, models: Iterable[str], *, backends: Iterable[str] = BACKENDS, vllm_names: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._exposition = Exposition(self._registry)
        self._vllm_names = vllm_names
        self.on_render: list[Callable[[], None]] = []
        """Called before a page is made: gauges that mirror state elsewhere are set there."""
        self._build_info()
        self.memory_budget = self._gauge("memory_budget_bytes", "What all models may hold", "device", "memory")
        self.memory_reserved = self._gauge("memory_reserved_bytes", "What the models hold", "device", "memory")
        self.memory_other = self._gauge("memory_other_bytes", "What other programs hold", "device", "memory")
        self.prefix_cache = self._gauge("prefix_cache_bytes", "Cached prefixes in host memory")
        self.prefix_cache_reserved = self._gauge(
            "prefix_cache_reserved_bytes", "What is reserved for them in the budget of host memory"
        )
        ratio = self._histogram(
            "memory_prediction_error_ratio", "Measured / predicted", _ERROR_RATIOS, "backend", "memory"
        )
        self.prediction_error = {(name, memory): ratio.labels(name, memory) for name in backends for memory in MEMORIES}
        make = _Maker(self)
        self._models = {name: make.model(name) for name in models}

    def model(self, name: str) -> ModelMetrics:
        """The series of a model of the catalogue."""
        return self._models[name]

    def publish_memory(self, device: str, memory: str, *, budget: int, reserved: int, other: int) -> None:
        """Show the budget of one memory as it is now."""
        self.memory_budget.labels(device, memory).set(budget)
        self.memory_reserved.labels(device, memory).set(reserved)
        self.memory_other.labels(device, memory).set(other)

    def publish_prefix_cache(self, *, used: int, reserved: int) -> None:
        """Show what cached prefixes take now."""
        self.prefix_cache.set(used)
        self.prefix_cache_reserved.set(reserved)

    def count_errors(self, backend: str, device: float | None, host: float | None) -> None:
        """How wrong the estimate of a load was: measured / predicted of each memory, None where it is not known."""
        for memory, ratio in (("device", device), ("host", host)):
            if ratio is not None:
                self.prediction_error[backend, memory].observe(ratio)

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        for update in self.on_render:
            update()
        page = self._exposition.page()
        return (page + self._vllm(page) if self._vllm_names else page).encode()

    def _vllm(self, page: str) -> str:
        lines = [_VLLM.sub("vllm:", line) for line in page.splitlines() if _VLLM.search(line)]
        return "".join(f"{line}\n" for line in lines)

    def _build_info(self) -> None:
        info = self._gauge("build_info", "Versions; always 1", "version", "llama_cpp")
        info.labels(_version("onecard"), _version("llama-cpp-python")).set(1)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"onecard_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"onecard_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"onecard_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _tally(self, name: str, text: str, edges: tuple[float, ...], label: str) -> TallyFamily:
        return TallyFamily(f"onecard_{name}", text, edges, label, registry=self._registry)


class _Maker:
    """The families with a `model_name` label, from which each model takes its series."""

    def __init__(self, metrics: Metrics) -> None:
        gauge, counter, histogram = metrics._gauge, metrics._counter, metrics._histogram  # noqa: SLF001 - its own half
        tally = metrics._tally  # noqa: SLF001
        name = "model_name"
        self.predicted = gauge("model_memory_predicted_bytes", "Estimate of the loaded model", name, "memory", "part")
        self.measured = gauge("model_memory_measured_bytes", "What the loaded model took", name, "memory")
        self.gpu_layers = gauge("model_gpu_layers", "Layers of the loaded model that lie on the GPU", name)
        self.layers = gauge("model_layers", "Layers of the loaded model, the output layer counted", name)
        self.state = gauge("model_state", "1 for the state the model is in", name, "state")
        self.loads = counter("model_loads", "Loads by outcome", name, "outcome")
        self.evictions = counter("model_evictions", "Unloads by reason", name, "reason")
        self.load_s = histogram("model_load_seconds", "From the decision to ready", _LOAD_S, name)
        self.swap_s = histogram("swap_wait_seconds", "What a request waited for its model's load", _LOAD_S, name)
        self.running = gauge("num_requests_running", "Requests in a worker", name)
        self.waiting = gauge("num_requests_waiting", "Requests in the queue", name)
        self.rejections = counter("admission_rejections", "Requests refused before any work", name, "reason")
        self.ttft = histogram("time_to_first_token_seconds", "From arrival to the first token", _TTFT_S, name)
        self.itl = tally("inter_token_latency_seconds", "Between tokens of one choice", _ITL_S, name)
        self.e2e = histogram("e2e_request_latency_seconds", "From arrival to the end", _REQUEST_S, name)
        self.queue = histogram("request_queue_time_seconds", "From arrival to a worker", _REQUEST_S, name)
        self.batch = tally("batch_sequences", "Sequences decoded, or inputs embedded, in one step", _BATCH, name)
        self.kv = gauge("kv_cache_usage_perc", "Used share of the KV cells, 0..1", name)
        self.preemptions = counter("num_preemptions", "Sequences preempted for want of room", name)
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up", name)
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens found", name)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens", name)
        self.generation_tokens = counter("generation_tokens", "Generated tokens", name)
        self.finished = counter("request_success", "Requests by the reason of their end", name, "finished_reason")
        self.cut_short = counter(
            "answers_cut_short", "Answers that a limit ended as far as they had come", name, "reason"
        )
        self.crashes = counter("worker_crashes", "Workers that ended unasked", name)

    def model(self, name: str) -> ModelMetrics:
        made = ModelMetrics(
            running=self.running.labels(name),
            waiting=self.waiting.labels(name),
            time_to_first_token=self.ttft.labels(name),
            inter_token=self.itl.labels(name),
            end_to_end=self.e2e.labels(name),
            queue_time=self.queue.labels(name),
            batch_sequences=self.batch.labels(name),
            kv_usage=self.kv.labels(name),
            preemptions=self.preemptions.labels(name),
            prefix_queries=self.prefix_queries.labels(name),
            prefix_hits=self.prefix_hits.labels(name),
            prompt_tokens=self.prompt_tokens.labels(name),
            generation_tokens=self.generation_tokens.labels(name),
            load_seconds=self.load_s.labels(name),
            swap_wait=self.swap_s.labels(name),
            crashes=self.crashes.labels(name),
            measured_bytes={memory: self.measured.labels(name, memory) for memory in MEMORIES},
            gpu_layers=self.gpu_layers.labels(name),
            layers=self.layers.labels(name),
            predicted_bytes={
                (memory, part): self.predicted.labels(name, memory, part) for memory in MEMORIES for part in PARTS
            },
            states={state: self.state.labels(name, state.value) for state in ModelState},
            loads={outcome: self.loads.labels(name, outcome) for outcome in LOAD_OUTCOMES},
            evictions={reason: self.evictions.labels(name, reason) for reason in get_args(UnloadReason)},
            rejections={reason: self.rejections.labels(name, reason) for reason in REJECTIONS.values()},
            finished={reason: self.finished.labels(name, reason) for reason in FINISHED_REASONS},
            cut_short={reason: self.cut_short.labels(name, reason) for reason in CUT_SHORT},
        )
        made.state(ModelState.UNLOADED)
        return made


@dataclass
class RequestMeter:
    """Turns the events of one job into the series of its model. Times are seconds on the pool's clock."""

    metrics: ModelMetrics
    series: frozenset[Series]
    """Those of the job's kind, beside what all requests count into."""
    submitted_at: float
    prompt_tokens: int = 0
    generated_tokens: int = 0
    started: bool = False
    reason: str = "stop"
    _last_token_at: dict[int, float] = field(default_factory=dict)

    def dispatched(self, now: float) -> None:
        """The job went to a worker."""
        self.metrics.queue_time.observe(now - self.submitted_at)

    def delta(self, event: Delta, now: float) -> None:
        """More of one choice."""
        if event.finish_reason is not None:
            self.reason = event.finish_reason
        if not event.n_tokens or "token_latency" not in self.series:
            return
        if not self.generated_tokens:
            self.metrics.time_to_first_token.observe(now - self.submitted_at)
        last_at = self._last_token_at.get(event.index)
        if last_at is not None:
            self.metrics.inter_token.observe((now - last_at) / event.n_tokens, event.n_tokens)
        self._last_token_at[event.index] = now
        self.generated_tokens += event.n_tokens

    def other(self, event: Event, now: float) -> None:
        """Any event but a delta."""
        match event:
            case Started():
                if not self.started:
                    self._start(event)
            case Part():
                pass
            case Finished():
                if self.started:
                    self.metrics.preemptions.inc(event.preemptions)
                    self.metrics.end_to_end.observe(now - self.submitted_at)
                    self._end(self.reason, event.prompt_tokens, event.completion_tokens)
            case Failed():
                if (rejected := REJECTIONS.get(event.code)) and not self.started:
                    self.metrics.rejections[rejected].inc()
                else:
                    ended = "abort" if event.code == "cancelled" else "error"
                    self._end(ended, self.prompt_tokens, self.generated_tokens)
            case _:
                assert_never(event)

    def _start(self, event: Started) -> None:
        self.started = True
        self.prompt_tokens = event.prompt_tokens
        if "prefix_cache" in self.series:
            self.metrics.prefix_queries.inc(event.prompt_tokens)
            self.metrics.prefix_hits.inc(event.cached_tokens)

    def _end(self, reason: str, prompt_tokens: int, completion_tokens: int) -> None:
        if "prompt_tokens" in self.series:
            self.metrics.prompt_tokens.inc(prompt_tokens)
        if "generation_tokens" in self.series:
            self.metrics.generation_tokens.inc(completion_tokens)
        self.metrics.finished[reason].inc()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
