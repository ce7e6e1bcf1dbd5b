"""The Prometheus page: every series of every model in the catalogue, counted from the events that pass the pool.

Names and labels are `metric_table`'s. One registry per instance. Label values come from the catalogue, never from a
client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from typing import TYPE_CHECKING, Any, Final, assert_never

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from backends.messages import Delta, Event, Failed, Finished, Part, Started, Step
from backends.registry import BACKENDS, kind_of
from server.exposition import Exposition, TokenHistogram, TokenHistogramFamily
from server.metric_table import FAMILIES, MEMORIES, MODELS, OF_KINDS, PREFIX, REJECTIONS, SERVER, Family
from server.scheduling.decisions import ModelState

if TYPE_CHECKING:
    from backends.kinds import AnyKind, Metric
    from backends.messages import Job
    from backends.messages.training import TrainStep
    from server.accounts.account import Reason, Spent

_VLLM: Final = re.compile(
    rf"\b{PREFIX}(?=({'|'.join(family.name for family in FAMILIES if family.in_vllm)})"
    r"(_total|_created|_bucket|_sum|_count)?\b)"
)


@dataclass
class ModelMetrics:
    """The series of one model, looked up once."""

    running: Gauge
    waiting: Gauge
    time_to_first_token: Histogram
    inter_token: TokenHistogram
    end_to_end: Histogram
    queue_time: Histogram
    batch_sequences: TokenHistogram
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
    host_layers: Mapping[str, Gauge]
    """By the configuration's names."""
    predicted_bytes: Mapping[tuple[str, str], Gauge]
    """By memory and part."""
    speed: Mapping[tuple[str, str], Gauge]
    """Tokens per second by phase and figure."""
    states: Mapping[ModelState, Gauge]
    loads: Mapping[str, Counter]
    growths: Mapping[str, Counter]
    evictions: Mapping[str, Counter]
    rejections: Mapping[str, Counter]
    finished: Mapping[str, Counter]
    cut_short: Mapping[str, Counter]
    drafted: Mapping[str, Counter]
    accepted: Mapping[str, Counter]
    """Both by drafter."""
    of_kinds: Mapping[str, Counter | Histogram]
    """What only some kinds of jobs count, by name."""

    def count(self, metric: Metric[Any], value: float) -> None:
        """Count what an event of a job adds to a metric of its kind."""
        match self.of_kinds[metric.name]:
            case Counter() as counter:
                counter.inc(value)
            case Histogram() as histogram:
                histogram.observe(value)

    def step(self, step: Step) -> None:
        """Count an engine step."""
        if step.batches:
            for n_sequences in step.batches:
                if n_sequences:
                    self.batch_sequences.observe(n_sequences)
        elif n_sequences := step.n_decode + step.n_inputs:
            self.batch_sequences.observe(n_sequences)
        for drafter, (n_drafted, n_accepted) in step.drafted.items():
            self.drafted[drafter].inc(n_drafted)
            self.accepted[drafter].inc(n_accepted)
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


@dataclass(frozen=True)
class KeyMetrics:
    """The series of keys, by names that the configuration gives: one that has asked for nothing has none."""

    requests: Counter
    refusals: Counter
    tokens: Counter

    def request(self, key_name: str) -> None:
        """A request was let in."""
        self.requests.labels(key_name).inc()

    def refused(self, key_name: str, reason: Reason) -> None:
        """A request was not."""
        self.refusals.labels(key_name, reason).inc()

    def spent(self, key_name: str, spent: Spent) -> None:
        """A job has ended."""
        self.tokens.labels(key_name, "prompt").inc(spent.prompt_tokens)
        self.tokens.labels(key_name, "cached").inc(spent.cached_tokens)
        self.tokens.labels(key_name, "completion").inc(spent.completion_tokens)


class Metrics:
    """One registry with everything in it."""

    def __init__(self, models: Iterable[str], *, backends: Iterable[str] = BACKENDS, vllm_names: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._exposition = Exposition(self._registry)
        self._vllm_names = vllm_names
        self.on_render: list[Callable[[], None]] = []
        """Called before a page is made: gauges that mirror state elsewhere are set there."""
        made = {name: _made(family, self._registry) for name, family in SERVER.items()}
        made["build_info"].labels(_version("onecard"), _version("llama-cpp-python")).set(1)
        self.memory_budget: Gauge = made["memory_budget"]
        self.memory_reserved: Gauge = made["memory_reserved"]
        self.memory_other: Gauge = made["memory_other"]
        self.memory_headroom: Gauge = made["memory_headroom"]
        self.prefix_cache: Gauge = made["prefix_cache"]
        self.prefix_cache_reserved: Gauge = made["prefix_cache_reserved"]
        self.keys = KeyMetrics(made["key_requests"], made["key_refused"], made["key_tokens"])
        self._batch_requests: Counter = made["batch_requests"]
        self._training_ends: Counter = made["training_ends"]
        self._training_steps: Counter = made["training_steps"]
        self._training_loss: Gauge = made["training_loss"]
        self._training_left: Gauge = made["training_left"]
        ratio: Histogram = made["prediction_error"]
        self._prediction_error = ratio
        for name, memory in product(backends, MEMORIES):
            ratio.labels(name, memory)  # shown from the start
        self._of_models = {name: _made(family, self._registry) for name, family in MODELS.items()}
        self._of_kinds = {name: _made(family, self._registry) for name, family in OF_KINDS.items()}
        self._models: dict[str, ModelMetrics] = {}
        for name in models:
            self.add(name)

    def model(self, name: str) -> ModelMetrics:
        """The series of a model of the catalogue."""
        return self._models[name]

    def add(self, name: str) -> None:
        """The series of one model more, all at zero."""
        self._models[name] = _series(self._of_models, self._of_kinds, name)

    def remove(self, name: str) -> None:
        """The series of a model that is no more leave the page."""
        del self._models[name]
        for of, family in MODELS.items():
            for key in product(*family.values):
                self._of_models[of].remove(name, *(getattr(one, "value", one) for one in key))
        for metric in self._of_kinds.values():
            metric.remove(name)
        self._exposition.forget()

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
                self._prediction_error.labels(backend, memory).observe(ratio)

    def count_line(self, outcome: str) -> None:
        """A line of a batch was answered or given back."""
        self._batch_requests.labels(outcome).inc()

    def count_training_end(self, outcome: str) -> None:
        """A fine-tuning job has ended, or a process of one."""
        self._training_ends.labels(outcome).inc()

    def on_training_step(self, step: TrainStep | None) -> None:
        """A step was done; None: none is being done."""
        if step is not None:
            self._training_steps.inc()
        self._training_loss.set(0.0 if step is None else step.loss)
        self._training_left.set(0.0 if step is None else step.seconds_left)

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        for update in self.on_render:
            update()
        page = self._exposition.page()
        return (page + self._vllm(page) if self._vllm_names else page).encode()

    def _vllm(self, page: str) -> str:
        lines = [_VLLM.sub("vllm:", line) for line in page.splitlines() if _VLLM.search(line)]
        return "".join(f"{line}\n" for line in lines)


def _made(family: Family, registry: CollectorRegistry) -> Any:
    """What the library, or we where it is too slow, count it with."""
    name = f"{PREFIX}{family.name}"
    match family.type:
        case "gauge":
            return Gauge(name, family.text, family.labels, registry=registry)
        case "counter":
            return Counter(name, family.text, family.labels, registry=registry)
        case "histogram":
            return Histogram(name, family.text, family.labels, buckets=family.edges, registry=registry)
        case "token histogram":
            return TokenHistogramFamily(name, family.text, family.edges, family.labels[0], registry=registry)
        case _:
            assert_never(family.type)


def _series(families: Mapping[str, Any], of_kinds: Mapping[str, Any], model: str) -> ModelMetrics:
    """The series of one model, of each family: one, or one for each of the values of its further labels."""
    found: dict[str, Any] = {}
    for name, family in MODELS.items():
        keys = list(product(*family.values))
        series = {key: families[name].labels(model, *(getattr(one, "value", one) for one in key)) for key in keys}
        found[name] = {key[0] if len(key) == 1 else key: its for key, its in series.items()} if keys[0] else series[()]
    made = ModelMetrics(**found, of_kinds={name: family.labels(model) for name, family in of_kinds.items()})
    made.state(ModelState.UNLOADED)
    return made


@dataclass
class RequestMeter:
    """Turns the events of one job into the series of its model. Times are seconds on the pool's clock."""

    metrics: ModelMetrics
    job: Job
    submitted_at: float
    timed: bool = True
    """False for a job that has time: how long it takes says nothing of what clients feel."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    started: bool = False
    reason: str = "stop"
    _kind: AnyKind = field(init=False)
    _last_token_at: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Its kind says what it counts into beside what all requests do."""
        self._kind = kind_of(self.job)

    def dispatched(self, now: float) -> None:
        """The job went to a worker."""
        if self.timed:
            self.metrics.queue_time.observe(now - self.submitted_at)

    def delta(self, event: Delta, now: float) -> None:
        """More of one choice."""
        if event.finish_reason is not None:
            self.reason = event.finish_reason
        if not event.n_tokens or "token_latency" not in self._kind.series:
            return
        if not self.timed:
            self.generated_tokens += event.n_tokens
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
        for metric in self._kind.metrics:
            if (value := metric.adds(self.job, event)) is not None:
                self.metrics.count(metric, value)
        match event:
            case Started():
                if not self.started:
                    self._start(event)
            case Part():
                pass
            case Finished():
                if self.started:
                    self.metrics.preemptions.inc(event.preemptions)
                    if self.timed:
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
        if "prefix_cache" in self._kind.series:
            self.metrics.prefix_queries.inc(event.prompt_tokens)
            self.metrics.prefix_hits.inc(event.cached_tokens)

    def _end(self, reason: str, prompt_tokens: int, completion_tokens: int) -> None:
        if "prompt_tokens" in self._kind.series:
            self.metrics.prompt_tokens.inc(prompt_tokens)
        if "generation_tokens" in self._kind.series:
            self.metrics.generation_tokens.inc(completion_tokens)
        self.metrics.finished[reason].inc()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
