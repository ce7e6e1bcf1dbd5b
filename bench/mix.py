"""Long prompts arriving beside running streams: what each does to the other."""

from __future__ import annotations

from bench.model import digits
from bench.serving import MODEL_NAME
from server.bench.figures import median, percentile
from server.bench.load import Answer, chat, run

N_DECODING = 4
N_PROMPTS = 6
PROMPT_TOKENS = 1300
EVERY_S = 1.5
LEAD_S = 2.0
"""Streams decode alone for this long, which is the baseline."""


def measure(url: str, *, n_generate: int = 1200) -> dict[str, float]:
    """Gaps of the decoding streams alone and beside prompts, and how long each prompt waits for its first token."""
    decoding = [chat(MODEL_NAME, digits(32, seed), n_generate) for seed in range(N_DECODING)]
    arriving = [
        chat(MODEL_NAME, digits(PROMPT_TOKENS, 100 + i), 8, at_s=LEAD_S + i * EVERY_S) for i in range(N_PROMPTS)
    ]
    answers = run(url, [*decoding, *arriving])
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed, the first with: {errors[0]}")
    streams, prompts = answers[:N_DECODING], answers[N_DECODING:]
    ended = max(prompt.ended_s for prompt in prompts)
    alone, beside = _itls(streams, 0.5, LEAD_S), _itls(streams, LEAD_S, ended)
    first = [prompt.ttft_s * 1e3 for prompt in prompts]
    return {
        "itl_alone_p50_ms": median(alone),
        "itl_alone_max_ms": max(alone, default=float("nan")),
        "itl_beside_p50_ms": median(beside),
        "itl_beside_p99_ms": percentile(beside, 99),
        "itl_beside_max_ms": max(beside, default=float("nan")),
        "prompt_ttft_p50_ms": median(first),
        "prompt_ttft_max_ms": max(first),
        "streams_outlast_prompts": float(min(stream.ended_s for stream in streams) > ended),
    }


def _itls(streams: list[Answer], after_s: float, before_s: float) -> list[float]:
    """Milliseconds between texts that arrived inside a time window."""
    itls = []
    for stream in streams:
        pairs = zip(stream.text_at_s, stream.text_at_s[1:], strict=False)
        itls += [(later - earlier) * 1e3 for earlier, later in pairs if after_s <= earlier and later <= before_s]
    return itls
