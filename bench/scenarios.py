"""What users of one card do to each other: long prompts beside streams, one system prompt for all, swaps, a full pool.

Each scenario runs on servers of its own with the measured model and compares what happens with what one request alone
gets there. A figure named `..._limit` is what the one before should keep: a bound above, of a ratio one below.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.generation.tiles import TILE
from bench import model
from bench.serving import MODEL_NAME, running
from demo import GGUF_PATH
from server.bench.figures import median, percentile
from server.bench.load import Answer, SentRequest, chat, run

N_DECODING, N_PROMPTS, PROMPT_TOKENS, EVERY_S, LEAD_S = 4, 6, 1300, 1.5, 2.0
STALL_TOKENS = 700
"""Of each decoding stream: enough to outlast the prompts."""
N_REQUESTS, AT_A_TIME, SYSTEM_TOKENS = 24, 6, 750
CONVERSATION_TOKENS = 2000
COUNTRIES = ("France", "Spain", "Italy", "Japan", "Egypt", "Peru", "Kenya", "Norway")
POOL_STREAMS, POOL_PROMPT, POOL_GENERATE, POOL_DEMAND = 8, 150, 250, 1.5
CHEAP_REST = TILE + 1
"""Where a whole tile is cheaper than fewer tokens, so many are computed of a prompt that is known but for those."""


def stall() -> dict[str, float]:
    """Four streams decode while a long prompt comes every 1.5 s; the same with steps of 2048 tokens for comparison."""
    figures = _stall("")
    whole = _stall("max_itl_ms = 60000\n")  # a batch has room for 2048 tokens, and no time ends it
    return {
        **figures,
        "chunks_of_2048_itl_max_ms": whole["itl_max_ms"],
        "chunks_of_2048_tokens_per_s": whole["tokens_per_s"],
        "tokens_per_s_ratio": figures["tokens_per_s"] / whole["tokens_per_s"],
        "tokens_per_s_ratio_limit": 0.95,
    }


def _stall(extra: str) -> dict[str, float]:
    with running(_config(context=2048, parallel=N_DECODING + N_PROMPTS, extra=extra)) as server:
        _checked(run(server.url, [chat(MODEL_NAME, model.digits(64, 900), 8)]))
        alone = _checked(run(server.url, [chat(MODEL_NAME, model.digits(PROMPT_TOKENS, 901), 8)]))[0]
        decoding = [chat(MODEL_NAME, model.digits(32, seed), STALL_TOKENS) for seed in range(N_DECODING)]
        arriving = [
            chat(MODEL_NAME, model.digits(PROMPT_TOKENS, 100 + i), 8, at_s=LEAD_S + i * EVERY_S)
            for i in range(N_PROMPTS)
        ]
        answers = _checked(run(server.url, [*decoding, *arriving]))
    streams, prompts = answers[:N_DECODING], answers[N_DECODING:]
    ended = max(prompt.ended_s for prompt in prompts)
    itls, alone_ms = _itls(streams, LEAD_S, ended), median(_itls(streams, 0.5, LEAD_S))
    n_tokens = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
    queued = [prompt.ttft_s / (alone.ttft_s * _ahead(prompt, prompts)) for prompt in prompts]
    return {
        "itl_alone_p50_ms": alone_ms,
        "itl_p50_ms": median(itls),
        "itl_p99_ms": percentile(itls, 99),
        "itl_max_ms": max(itls),
        "itl_max_ms_limit": min(300.0, 12 * median(itls)),
        "itl_max_over_alone": max(itls) / alone_ms,
        "prompt_alone_ttft_ms": alone.ttft_s * 1e3,
        "prompt_ttft_p50_ms": median([prompt.ttft_s * 1e3 for prompt in prompts]),
        "prompt_ttft_p50_over_queue": median(queued),
        "prompt_ttft_p50_over_queue_limit": 1.5,
        "tokens_per_s": n_tokens / max(answer.ended_s for answer in answers),
    }


def _ahead(prompt: Answer, prompts: Sequence[Answer]) -> int:
    """How many prompts were waiting for their first token when this one came, itself among them."""
    return 1 + sum(
        other.sent_s < prompt.sent_s < other.sent_s + other.ttft_s for other in prompts if other is not prompt
    )


def prefix() -> dict[str, float]:
    """24 requests, six at a time, that begin with one system prompt which was never seen before."""
    with running(_config(context=2048, parallel=AT_A_TIME)) as server:
        _checked(run(server.url, [chat(MODEL_NAME, model.digits(64, 900), 8)]))
        before = _metric(server.url, "prefix_cache_hits_total")
        answers = []
        for wave in range(N_REQUESTS // AT_A_TIME):
            requests = [_with_system(wave * AT_A_TIME + i) for i in range(AT_A_TIME)]
            answers += _checked(run(server.url, requests))
        n_cached = _metric(server.url, "prefix_cache_hits_total") - before
    first = [answer.ttft_s * 1e3 for answer in answers]
    n_prompt = sum(answer.prompt_tokens for answer in answers)
    return {
        "very_ttft_ms": first[0],
        "ttft_p50_ms": median(first),
        "ttft_p99_ms": percentile(first, 99),
        "ttft_p99_ms_limit": 1.3 * first[0],
        "prompt_tokens": n_prompt,
        "computed_tokens": n_prompt - n_cached,
        "computed_tokens_per_later_request": (n_prompt - n_cached - answers[0].prompt_tokens) / (N_REQUESTS - 1),
        "computed_tokens_per_later_request_limit": float(max(answers[0].prompt_tokens - SYSTEM_TOKENS, CHEAP_REST)),
    }


def _with_system(seed: int) -> SentRequest:
    request = chat(MODEL_NAME, model.digits(20, 300 + seed), 16)
    system = {"role": "system", "content": model.digits(SYSTEM_TOKENS, 777)}
    return SentRequest({**request.body, "messages": [system, *request.body["messages"]]})


def conversation() -> dict[str, float]:
    """A conversation of 2000 tokens on A, a request to B that evicts A, and the second turn on A.

    It speaks in digits, each of which is one token: a random model's other texts are tokenized otherwise when they
    come back as part of a prompt.
    """
    path = model.path()
    text = "".join(f'[models.{name}]\npath = "{path}"\ncontext = 4096\nparallel = 1\n' for name in "ab")
    with running(text) as server:
        plan = _get(server.url, "/v1/capacity?model=a")
    budget = f'[memory]\ndevice = "cpu"\nbudget = {int(1.5 * plan["total_bytes"])}\n[scheduler]\nmin_residency_s = 0\n'
    with running(budget + text) as server:
        messages = [{"role": "user", "content": model.digits(CONVERSATION_TOKENS, 1)}]
        one = _turn(server.url, "a", messages)
        messages += [{"role": "assistant", "content": one["text"]}, {"role": "user", "content": model.digits(20, 2)}]
        _turn(server.url, "b", [{"role": "user", "content": "x"}])
        two = _turn(server.url, "a", messages)
    return {
        "first_turn_tokens": one["prompt_tokens"],
        "second_turn_tokens": two["prompt_tokens"],
        "second_turn_computed_tokens": two["prompt_tokens"] - two["cached_tokens"],
        "second_turn_computed_tokens_limit": float(CHEAP_REST),
    }


def _turn(url: str, name: str, messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
    body = {
        "model": name,
        "messages": messages,
        "max_tokens": 40,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(ord(digit)): 100 for digit in "0123456789"},
        **fields,
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    usage = answer["usage"]
    return {
        "text": answer["choices"][0]["message"]["content"],
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }


def pool() -> dict[str, float]:
    """Eight streams on a pool that holds two thirds of what they come to, each against itself alone.

    On the demo model, which is sure of what it says: between tokens of a random one ties are common.
    """
    demand = POOL_STREAMS * (POOL_PROMPT + POOL_GENERATE)
    extra = f"kv_tokens = {int(demand / POOL_DEMAND)}\n"
    prompts = [f"What is the capital of {country}? " * 20 for country in COUNTRIES]
    with running(_config(context=1024, parallel=POOL_STREAMS, extra=extra, path=GGUF_PATH)) as server:
        requests = [_uncached(chat(MODEL_NAME, prompt, POOL_GENERATE)) for prompt in prompts]
        alone = [run(server.url, [request])[0] for request in requests]
        before = _metric(server.url, "num_preemptions_total")
        together = run(server.url, requests)
        preempted = _metric(server.url, "num_preemptions_total") - before
    same = [_common(a.text, b.text) for a, b in zip(alone, together, strict=True)]
    return {
        "streams": float(POOL_STREAMS),
        "failed": float(sum(answer.error is not None for answer in together)),
        "preemptions": preempted,
        "texts_equal": float(sum(share == 1.0 for share in same)),
        "least_common_share": min(same),
        "seconds_alone": sum(answer.ended_s - answer.sent_s for answer in alone),
        "seconds_together": max(answer.ended_s for answer in together),
    }


def _uncached(request: SentRequest) -> SentRequest:
    return SentRequest({**request.body, "cache_prompt": False})


def _common(a: str, b: str) -> float:
    """The share of a text that another begins with."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return n / max(len(a), len(b), 1)


def _config(*, context: int, parallel: int, extra: str = "", path: Path | None = None) -> str:
    head = f'[memory]\ndevice = "cpu"\n[models.{MODEL_NAME}]\npath = "{path or model.path()}"\n'
    return f"{head}context = {context}\nparallel = {parallel}\n{extra}"


def _checked(answers: list[Answer]) -> list[Answer]:
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed, the first with: {errors[0]}")
    return answers


def _itls(streams: Sequence[Answer], after_s: float, before_s: float) -> list[float]:
    """Milliseconds between texts that arrived inside a time window."""
    pairs = [pair for s in streams for pair in zip(s.text_at_s, s.text_at_s[1:], strict=False)]
    return [(later - earlier) * 1e3 for earlier, later in pairs if after_s <= earlier and later <= before_s]


def _get(url: str, path: str) -> Mapping[str, Any]:
    with urllib.request.urlopen(url + path, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _metric(url: str, name: str) -> float:
    """The sum of a counter over all models."""
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"onecard_{name}{{"))
