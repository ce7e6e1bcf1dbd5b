"""What the headers of an answer tell about its run."""

from __future__ import annotations

import pytest

from backends.messages import Started
from server.pool.stream import Stream
from server.routes.answering import run_headers
from server.routes.running import Run


def run_of(**figures: object) -> Run:
    stream = Stream("m", "j", cancel=lambda _: None, loading=lambda: False)
    for name, value in figures.items():
        setattr(stream, name, value)
    return Run([stream], 1, {})


@pytest.mark.parametrize(
    ("layers", "told"), [(None, None), ((33, 33), None), ((29, 33), "29/33"), ((1, 33), "1/33"), ((0, 33), "0/33")]
)
def test_a_model_that_runs_partly_on_the_cpu_says_so(layers, told):
    assert run_headers(run_of(gpu_layers=layers), None).get("x-onecard-gpu-layers") == told


def test_weights_that_the_cpu_computes_with_are_told_by_their_keys():
    headers = run_headers(run_of(gpu_layers=(49, 49), kept_from_card={"expert_layers": 30}), None)

    assert headers == {"x-onecard-expert-layers": "30"}


def test_waits_are_whole_milliseconds_and_only_what_happened_is_told():
    assert run_headers(run_of(), None) == {}
    assert run_headers(run_of(queue_ms=12.6, load_ms=3.2), Started(id="j", prompt_tokens=9, cached_tokens=4)) == {
        "x-onecard-queue-ms": "13",
        "x-onecard-load-ms": "3",
        "x-onecard-cached-tokens": "4",
    }
