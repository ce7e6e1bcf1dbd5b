"""The metrics page: valid, complete from the start, and its token counters equal the sum of the usages."""

from __future__ import annotations

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

from backends.messages import Delta, Finished, Step, TextPrompt, Tokenize
from backends.registry import KINDS
from server.metrics import Metrics
from tests.pool.conftest import Maker, read

NAMES = {
    "memory_budget_bytes",
    "memory_reserved_bytes",
    "memory_other_bytes",
    "memory_headroom_bytes",
    "prefix_cache_bytes",
    "prefix_cache_reserved_bytes",
    "model_memory_predicted_bytes",
    "model_memory_measured_bytes",
    "memory_prediction_error_ratio",
    "model_state",
    "model_loads",
    "context_growths",
    "model_evictions",
    "model_load_seconds",
    "swap_wait_seconds",
    "num_requests_running",
    "num_requests_waiting",
    "admission_rejections",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "batch_sequences",
    "kv_cache_usage_perc",
    "model_gpu_layers",
    "model_host_layers",
    "model_layers",
    "model_tokens_per_second",
    "num_preemptions",
    "speculation_accepted_tokens",
    "speculation_drafted_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "worker_crashes",
    "answers_cut_short",
    "key_requests",
    "key_refused_requests",
    "key_tokens",
    "batch_requests",
    "training_steps",
    "training_ends",
    "training_loss",
    "training_seconds_left",
    "build_info",
}


def families(page: bytes) -> dict:
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def test_page_is_complete_before_the_first_request() -> None:
    page = families(Metrics(["a", "b/c:d"]).render())
    names = NAMES | {metric.name for kind in KINDS.values() for metric in kind.metrics}
    assert {f"onecard_{name}" for name in names} == set(page)
    for name in ("time_to_first_token_seconds", "request_success", "num_requests_running", "model_state"):
        models = {sample.labels["model_name"] for sample in page[f"onecard_{name}"].samples}
        assert models == {"a", "b/c:d"}, name


def test_two_instances_share_nothing() -> None:
    one, two = Metrics(["a"]), Metrics(["a"])
    one.model("a").crashes.inc()
    assert one.render() != two.render()


def test_vllm_names_carry_the_same_figures() -> None:
    metrics = Metrics(["a"], vllm_names=True)
    metrics.model("a").prompt_tokens.inc(7)
    page = metrics.render().decode()
    assert 'vllm:prompt_tokens_total{model_name="a"} 7.0' in page
    assert 'vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="a"} 0.0' in page
    assert "vllm:model_state" not in page
    assert "vllm:prompt_tokens" in families(page.encode())
    assert "vllm:" not in Metrics(["a"]).render().decode()


def test_drafted_tokens_are_counted_by_drafter() -> None:
    metrics = Metrics(["a"])

    for _ in range(2):
        metrics.model("a").step(Step(n_decode=1, drafted={"ngram": (5, 3), "prediction": (2, 0)}))

    page = metrics.render().decode()
    assert 'onecard_speculation_drafted_tokens_total{drafter="ngram",model_name="a"} 10.0' in page
    assert 'onecard_speculation_accepted_tokens_total{drafter="ngram",model_name="a"} 6.0' in page
    assert 'onecard_speculation_accepted_tokens_total{drafter="prediction",model_name="a"} 0.0' in page


def test_buckets_are_those_of_vllm() -> None:
    page = Metrics(["a"]).render().decode()
    ttft = re.findall(r'time_to_first_token_seconds_bucket\{le="([^"]+)"', page)
    assert ttft[:3] == ["0.001", "0.005", "0.01"]
    assert ttft[-3:] == ["640.0", "2560.0", "+Inf"]
    e2e = re.findall(r'e2e_request_latency_seconds_bucket\{le="([^"]+)"', page)
    assert (e2e[0], e2e[-2]) == ("0.3", "7680.0")


async def test_token_counters_equal_the_sum_of_the_usages(make: Maker) -> None:
    rig = await make(parallel=3)
    streams = [rig.submit("a", f"!long {i + 1}", n=1 + i % 3) for i in range(12)]
    ends = [(await read(stream))[-1] for stream in streams]
    await rig.ask("a", Tokenize("t", TextPrompt("not counted")))

    finished = [end for end in ends if isinstance(end, Finished)]
    assert len(finished) == 12
    assert rig.sample("generation_tokens_total", model_name="a") == sum(f.completion_tokens for f in finished)
    assert rig.sample("prompt_tokens_total", model_name="a") == sum(f.prompt_tokens for f in finished)
    n_tokens, n_choices = sum(f.completion_tokens for f in finished), sum(1 + i % 3 for i in range(12))
    assert rig.sample("batch_sequences_sum", model_name="a") == n_tokens  # however many steps a message told of
    assert rig.sample("inter_token_latency_seconds_count", model_name="a") == n_tokens - n_choices
    assert rig.sample("request_success_total", model_name="a", finished_reason="stop") == 12
    assert rig.sample("time_to_first_token_seconds_count", model_name="a") == 12
    assert rig.sample("e2e_request_latency_seconds_count", model_name="a") == 12
    assert rig.sample("num_requests_running", model_name="a") == 0


async def test_cut_requests_count_what_was_delivered(make: Maker) -> None:
    rig = await make()
    stream = rig.submit("a", "!slow 10 100000")
    delivered = 0
    async for event in stream:
        if isinstance(event, Delta):
            delivered += event.n_tokens
            if delivered >= 3:
                break
    stream.cancel()
    await read(stream)
    assert rig.sample("generation_tokens_total", model_name="a") >= delivered
    assert rig.sample("request_success_total", model_name="a", finished_reason="abort") == 1


async def test_length_is_counted_as_length(make: Maker) -> None:
    rig = await make()
    await rig.ask("a", "!long 10", max_tokens=4)
    assert rig.sample("request_success_total", model_name="a", finished_reason="length") == 1
    assert rig.sample("generation_tokens_total", model_name="a") == 4


async def test_gauges_mirror_the_pool(make: Maker) -> None:
    rig = await make(parallel=1)
    stream = rig.submit("a", "!slow 10 100000")
    await asyncio.wait_for(stream.first(), 20)
    waiting = rig.submit("a", "waits")

    assert rig.sample("num_requests_running", model_name="a") == 1
    assert rig.sample("num_requests_waiting", model_name="a") == 1
    assert rig.sample("model_state", model_name="a", state="ready") == 1
    assert rig.sample("model_state", model_name="a", state="unloaded") == 0
    reserved = rig.sample("memory_reserved_bytes", device="cpu", memory="host")
    assert 0 < reserved <= rig.sample("memory_budget_bytes", device="cpu", memory="host")
    assert rig.sample("model_memory_measured_bytes", model_name="a", memory="host") == 1 << 20
    assert rig.sample("memory_prediction_error_ratio_count", backend="gguf", memory="host") == 1
    for s in (stream, waiting):
        s.cancel()
        await read(s)
