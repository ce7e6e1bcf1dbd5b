"""`python -m bench cluster`: the router beside other rules on modelled nodes, seeded and from a file."""

from __future__ import annotations

import argparse
import json
from xml.etree import ElementTree as ET

import pytest

from bench.cluster import command


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    return command.measure(parser.parse_args([str(argument) for argument in arguments]))


def test_the_router_swaps_less_and_waits_less_than_the_least_loaded(tmp_path):
    picture = tmp_path / "cluster.svg"
    small = ("--nodes", 3, "--users", 45, "--models", 8, "--minutes", 3, "--rules", "router,least_loaded")
    figures = run(*small, "--svg", picture)
    assert figures["swaps_of_least_loaded"] < 0.5
    assert figures["p99_of_least_loaded"] < 0.6
    assert figures["router_prefix_hits"] > figures["least_loaded_prefix_hits"] + 0.2
    assert figures == run(*small)
    assert "least loaded" in "".join(ET.parse(picture).getroot().itertext())


def test_limits_belong_to_the_standard_run_alone():
    figures = run("--nodes", 1, "--users", 2, "--models", 2, "--minutes", 1)
    assert not [name for name in figures if name.endswith("_limit")]
    assert {name.removesuffix("_requests") for name in figures if name.endswith("_requests")} == {
        "router", "least_loaded", "multiplexed", "two_choices", "round_robin", "random",
    }  # fmt: skip


def test_a_trace_is_played_to_its_end(tmp_path):
    turn = {"model": "m00", "new_tokens": 50, "answer_tokens": 20, "think_s": 1.0}
    turns = [
        {**turn, "user": user, "conversation": f"{user}{n // 3}", "prompt_tokens": 50 * (n % 3 + 1)}
        for user in "xy"
        for n in range(6)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, turns)))
    figures = run("--trace", trace, "--nodes", 2, "--rules", "router")
    assert figures["router_requests"] == 12
    assert figures["router_prefix_hits"] == 1.0
    assert figures["router_swaps_per_request"] == pytest.approx(1 / 12)
    trace.write_text('{"user": "x"}')
    with pytest.raises(SystemExit, match=r"line 1: .*hint: user and the fields"):
        run("--trace", trace)


@pytest.mark.parametrize(
    ("wrong", "told"), [(("--nodes", 1001), "1 to 1000"), (("--rules", "best"), "hint: router, least_loaded")]
)
def test_what_cannot_be_run_is_told(wrong, told):
    with pytest.raises(SystemExit, match=told):
        run(*wrong)
