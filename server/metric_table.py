"""Every metric by name, kind, labels and meaning, once: the page, `docs/metrics.md` and vLLM's names read this table.

Owns buckets and the values of labels. `server.metrics` counts into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from backends.messages import DRAFTERS
from backends.plan import COMPONENTS
from backends.registry import BACKENDS, KINDS
from server.scheduling.decisions import ModelState, UnloadReason

PREFIX: Final = "onecard_"
Type = Literal["gauge", "counter", "histogram", "token histogram"]
"""The last is a histogram for what happens with every token: counting must cost next to nothing."""
PARTS: Final = (*COMPONENTS, *dict.fromkeys(name for backend in BACKENDS.values() for name in backend.components))
MEMORIES: Final = ("device", "host")
"""Of a card, and of the machine; without a card all is host memory."""
LOAD_OUTCOMES: Final = ("ok", "oom", "error", "timeout", "cancelled")
REJECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "queue_full": "queue_full",
        "context_length_exceeded": "too_long",
        "cannot_fit": "cannot_fit",
        "draining": "draining",
    }
)
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


@dataclass(frozen=True)
class Family:
    """One name."""

    name: str
    """Without the prefix, and without the `_total` of counters."""
    type: Type
    text: str
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    values: tuple[Sequence[Any], ...] = ()
    """What its labels may be, of those behind `model_name`; as attributes of a model's series are looked up by."""
    in_vllm: bool = False
    """vLLM has it under the same name behind its own prefix."""

    @property
    def full_name(self) -> str:
        """As it stands on the page."""
        return f"{PREFIX}{self.name}{'_total' if self.type == 'counter' else ''}"


def _of_models(
    name: str, kind: Type, text: str, edges: tuple[float, ...] = (), *, in_vllm: bool = False, **values: Sequence[Any]
) -> Family:
    """One with a series for each model, or for each model and each of some values of further labels."""
    return Family(name, kind, text, ("model_name", *values), edges, tuple(values.values()), in_vllm)


SERVER: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "build_info": Family("build_info", "gauge", "Versions; always 1", ("version", "llama_cpp")),
        "memory_budget": Family("memory_budget_bytes", "gauge", "What all models may hold", ("device", "memory")),
        "memory_reserved": Family("memory_reserved_bytes", "gauge", "What the models hold", ("device", "memory")),
        "memory_other": Family("memory_other_bytes", "gauge", "What other programs hold", ("device", "memory")),
        "memory_headroom": Family(
            "memory_headroom_bytes", "gauge", "Left free on the card while another program's use of it grows"
        ),
        "prefix_cache": Family("prefix_cache_bytes", "gauge", "Cached prefixes in host memory"),
        "prefix_cache_reserved": Family(
            "prefix_cache_reserved_bytes", "gauge", "What is reserved for them in the budget of host memory"
        ),
        "key_requests": Family("key_requests", "counter", "Requests let in, by the name of their key", ("key_name",)),
        "key_refused": Family(
            "key_refused_requests", "counter", "Requests that a limit of their key refused", ("key_name", "reason")
        ),
        "key_tokens": Family("key_tokens", "counter", "Tokens, by the name of their key", ("key_name", "kind")),
        "batch_requests": Family(
            "batch_requests", "counter", "Lines of batches; given back: asked again later, for a client", ("outcome",)
        ),
        "training_ends": Family(
            "training_ends",
            "counter",
            "Fine-tuning jobs that ended, and processes of theirs that left or crashed before",
            ("outcome",),
        ),
        "training_steps": Family("training_steps", "counter", "Steps that fine-tuning jobs have done"),
        "training_loss": Family("training_loss", "gauge", "Loss of the last step of the job that runs; else 0"),
        "training_left": Family("training_seconds_left", "gauge", "Until the job that runs has ended; else 0"),
        "prediction_error": Family(
            "memory_prediction_error_ratio", "histogram", "Measured / predicted", ("backend", "memory"), _ERROR_RATIOS
        ),
    }
)
"""Of the whole server, by the attribute of `Metrics`."""

MODELS: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "predicted_bytes": _of_models(
            "model_memory_predicted_bytes", "gauge", "Estimate of the loaded model", memory=MEMORIES, part=PARTS
        ),
        "measured_bytes": _of_models(
            "model_memory_measured_bytes", "gauge", "What the loaded model took", memory=MEMORIES
        ),
        "gpu_layers": _of_models("model_gpu_layers", "gauge", "Layers of the loaded model that lie on the GPU"),
        "layers": _of_models("model_layers", "gauge", "Layers of the loaded model, the output layer counted"),
        "host_layers": _of_models(
            "model_host_layers",
            "gauge",
            "Layers on the GPU whose experts or feed-forward weights lie in host memory",
            weights=("expert_layers", "ffn_layers"),
        ),
        "speed": _of_models(
            "model_tokens_per_second",
            "gauge",
            "What one request alone gets of the loaded model; measured is 0 until it has run",
            phase=("decode", "prefill"),
            figure=("predicted", "measured"),
        ),
        "states": _of_models("model_state", "gauge", "1 for the state the model is in", state=tuple(ModelState)),
        "growths": _of_models(
            "context_growths",
            "counter",
            "Longer contexts that a request has asked for, by what came of it; and models that shrank back",
            outcome=("grown", "refused", "shrunk"),
        ),
        "loads": _of_models("model_loads", "counter", "Loads by outcome", outcome=LOAD_OUTCOMES),
        "evictions": _of_models("model_evictions", "counter", "Unloads by reason", reason=get_args(UnloadReason)),
        "load_seconds": _of_models("model_load_seconds", "histogram", "From the decision to ready", _LOAD_S),
        "swap_wait": _of_models(
            "swap_wait_seconds", "histogram", "What a request waited for its model's load", _LOAD_S
        ),
        "running": _of_models("num_requests_running", "gauge", "Requests in a worker", in_vllm=True),
        "waiting": _of_models("num_requests_waiting", "gauge", "Requests in the queue", in_vllm=True),
        "rejections": _of_models(
            "admission_rejections",
            "counter",
            "Requests refused before any work",
            reason=tuple(REJECTIONS.values()),
        ),
        "time_to_first_token": _of_models(
            "time_to_first_token_seconds", "histogram", "From arrival to the first token", _TTFT_S, in_vllm=True
        ),
        "inter_token": _of_models(
            "inter_token_latency_seconds", "token histogram", "Between tokens of one choice", _ITL_S, in_vllm=True
        ),
        "end_to_end": _of_models(
            "e2e_request_latency_seconds", "histogram", "From arrival to the end", _REQUEST_S, in_vllm=True
        ),
        "queue_time": _of_models(
            "request_queue_time_seconds", "histogram", "From arrival to a worker", _REQUEST_S, in_vllm=True
        ),
        "batch_sequences": _of_models(
            "batch_sequences", "token histogram", "Sequences decoded, or inputs embedded, in one step", _BATCH
        ),
        "kv_usage": _of_models("kv_cache_usage_perc", "gauge", "Used share of the KV cells, 0..1", in_vllm=True),
        "preemptions": _of_models(
            "num_preemptions", "counter", "Sequences preempted for want of room or for a longer context", in_vllm=True
        ),
        "prefix_queries": _of_models("prefix_cache_queries", "counter", "Prompt tokens looked up", in_vllm=True),
        "prefix_hits": _of_models("prefix_cache_hits", "counter", "Prompt tokens found", in_vllm=True),
        "prompt_tokens": _of_models("prompt_tokens", "counter", "Prompt tokens", in_vllm=True),
        "generation_tokens": _of_models("generation_tokens", "counter", "Generated tokens", in_vllm=True),
        "finished": _of_models(
            "request_success",
            "counter",
            "Requests by the reason of their end",
            in_vllm=True,
            finished_reason=FINISHED_REASONS,
        ),
        "cut_short": _of_models(
            "answers_cut_short",
            "counter",
            "Answers that a limit ended as far as they had come",
            reason=CUT_SHORT,
        ),
        "drafted": _of_models(
            "speculation_drafted_tokens", "counter", "Tokens drafted and computed ahead", drafter=DRAFTERS
        ),
        "accepted": _of_models(
            "speculation_accepted_tokens", "counter", "Drafted tokens that came true", drafter=DRAFTERS
        ),
        "crashes": _of_models("worker_crashes", "counter", "Workers that ended unasked"),
    }
)
"""Of each model, by the attribute of `ModelMetrics`."""
OF_KINDS: Final[Mapping[str, Family]] = MappingProxyType(
    {one.name: _of_models(one.name, one.type, one.text, one.edges) for kind in KINDS.values() for one in kind.metrics}
)
"""The same of what only some kinds of jobs count, by name."""
FAMILIES: Final = (*SERVER.values(), *MODELS.values(), *OF_KINDS.values())
