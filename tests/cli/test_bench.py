"""`onecard bench`: real figures of the demo model through a real server, its JSON, its table and its picture."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from backends.workload import Workload
from demo import GGUF_PATH
from server.bench import baseline
from server.bench.baseline import Baseline
from server.bench.load import completion, run
from server.bench.measure import Row, Spread
from server.bench.picture import as_svg
from server.bench.report import Report, with_baseline
from server.cli import bench
from tests.e2e.server import serving
from tests.embeddings import models
from tests.present import present

SVG = "{http://www.w3.org/2000/svg}"
REAL = {"ONECARD_TEST_ENGINE": ""}


def row(parallel: int, **given) -> Row:
    spread = Spread(10.0 * parallel, 20.0 * parallel, 30.0 * parallel)
    return Row(parallel, 50.0 * parallel, spread, spread, 9.0, **given)


def report(rows: list[Row], **given) -> Report:
    fields = {"baseline": "bare loop", "baseline_missing": None, **given}
    return Report("a<b", "gguf", 2048, 9, 0, 64, 128, rows=rows, **fields)


def test_an_adapter_is_measured_on_the_model_that_it_is_loaded_with():
    line = {"name": "chat", "context": 2048, "parallel": 4}
    told = {
        "/tokenize": {"tokens": [1]},
        "/v1/status": {"models": [line]},
        "/v1/models/chat:pirate": {"id": "chat:pirate", "parent": "chat"},
    }
    client: Any = SimpleNamespace(base="http://a", key=None, get=told.get, post=lambda path, _: told[path])
    target, status = bench._target(client, "chat:pirate")
    assert (target.model, target.context, status) == ("chat:pirate", 2048, line)


@pytest.mark.engine
def test_the_demo_model_is_measured_on_a_server_of_its_own(onecard, tmp_path):
    svg = tmp_path / "bench.svg"
    done = onecard(
        "bench", "demo", "--parallel", "2,1", "--generate", "96", "--rounds", "1", "--svg", str(svg), "--json", env=REAL
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["backend"], told["baseline"], told["baseline_missing"]) == (
        "demo",
        "gguf",
        "bare loop",
        None,
    )
    assert (told["server_parallel"], told["context"], told["generate_tokens"]) == (3, 2048, 96)
    assert [line["parallel"] for line in told["rows"]] == [1, 2]
    for line in told["rows"]:
        assert line["tokens_per_s"] > 20
        assert line["efficiency"] == pytest.approx(line["tokens_per_s"] / line["bare_tokens_per_s"])
        assert 0 < line["ttft_ms"]["p50"] <= line["ttft_ms"]["p99"] <= line["ttft_ms"]["max"] < 20_000
        # A client that is held up reads several pieces at once, so half of the gaps may be none.
        assert 0 <= line["itl_ms"]["p50"] <= line["itl_ms"]["max"] > 0
        assert line["prefill_itl_ms"] > 0
        assert line["prefill_ttft_ms"] > line["ttft_ms"]["p50"] * 0.2
    assert ET.parse(svg).getroot().tag == f"{SVG}svg"


@pytest.mark.engine
def test_a_running_server_is_measured_as_it_is(onecard, tmp_path):
    env = {**REAL, "ONECARD_API_KEY": "secret"}
    flags = ("--parallel", "2", "--context", "256", "--api-key", "secret")
    with serving(tmp_path, models={"chat": GGUF_PATH}, flags=flags, env=REAL) as server:
        done = onecard(
            "bench", "chat", "--url", server.url, "--rounds", "1", "--prompt", "16", "--generate", "16", env=env
        )
        refused = onecard("bench", "chat", "--url", server.url, "--parallel", "2,4", env=env)
        long = onecard("bench", "chat", "--url", server.url, "--prompt", "250", env=env)
        absent = onecard("bench", "cha", "--url", server.url, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["AT", "1", "2"]
    assert "n/a, the model's files are not known here" in done.stdout
    assert (refused.returncode, "decodes 2 of chat at once" in refused.stderr) == (1, True)
    assert (long.returncode, "chat has context 256" in long.stderr) == (1, True)
    assert (absent.returncode, "did you mean chat?" in absent.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--parallel", "0"), "numbers from 1 to"),
        (("--parallel", "two"), "numbers from 1 to"),
        (("--parallel", ","), "numbers from 1 to"),
        (("--svg", "/nowhere/at/all.svg"), "there is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_server_starts(onecard, arguments, words):
    done = onecard("bench", "demo", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.engine
def test_a_model_that_writes_no_text_is_not_measured(onecard, tmp_path):
    done = onecard("bench", str(models.to_gguf(models.minilm(), tmp_path, "F32")), env=REAL)
    assert done.returncode == 2
    assert "is an embedding model and writes no text" in done.stderr
    assert "HTTP/1.1" not in done.stderr


@pytest.mark.engine
def test_both_baselines_do_the_same_work():
    work = Workload(n_prompt=16, n_generate=16, context=256)
    bare = baseline.measure(baseline.loop_of("gguf"), GGUF_PATH, "gguf", work, streams=[1, 3], rounds=1)
    alone = baseline.measure(baseline.ALONE, GGUF_PATH, "gguf", work, streams=[1, 3], rounds=1)
    assert (bare.name, alone.name) == ("bare loop", "engine alone")
    assert (bare.missing, alone.missing) == (None, None)
    assert bare.tokens_per_s.keys() == alone.tokens_per_s.keys() == {1, 3}
    assert min(*bare.tokens_per_s.values(), *alone.tokens_per_s.values()) > 20


@pytest.mark.engine
def test_a_baseline_that_fails_says_why(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(GGUF_PATH.read_bytes()[:4000])
    found = baseline.measure(baseline.loop_of("gguf"), broken, "gguf", Workload(n_generate=4), streams=[1], rounds=1)
    assert found.tokens_per_s == {}
    assert "cannot load this file" in present(found.missing)


def test_rates_stand_beside_the_rows_they_belong_to():
    rows = with_baseline([row(1), row(8)], Baseline("bare loop", {1: 100.0}, "no memory for 8"))
    assert [(r.bare_tokens_per_s, r.efficiency) for r in rows] == [(100.0, 0.5), (None, None)]


def test_background_requests_are_cut_when_the_others_have_ended(tmp_path):
    with serving(tmp_path, models={"m": "demo"}, env={"ONECARD_TEST_ENGINE": "tests.fakes.engine:load"}) as server:
        slow = [ord(c) for c in "!slow 20 1000"]
        requests = [completion("m", slow, 1000, background=True), completion("m", [104, 105], 8, at_s=0.2)]
        stream, prompt = run(server.url, requests, timeout_s=20)
    assert (stream.cut, stream.error, prompt.cut, prompt.error) == (True, None, False, None)
    assert stream.ended_s >= prompt.ended_s
    assert len(stream.text_at_s) < 500


def shapes(picture: str, tag: str) -> list[dict[str, str]]:
    return [element.attrib for element in ET.fromstring(picture).iter(f"{SVG}{tag}")]


def test_the_picture_shows_every_figure_inside_its_frame():
    rows = with_baseline([row(n, prefill_itl_ms=500.0) for n in (1, 2, 4, 8)], Baseline("bare loop", {1: 70, 8: 900}))
    picture = as_svg(report(rows))
    circles, bars = shapes(picture, "circle"), [r for r in shapes(picture, "rect") if float(r["width"]) > 12]
    assert len(circles) == 4 * 4
    assert len(bars) == 1 + 4 + 2  # the background, ours, the baseline's
    assert all(560 <= float(c["cx"]) <= 950 and 84 <= float(c["cy"]) <= 356 for c in circles)
    heights = sorted(float(bar["height"]) for bar in bars[1:])
    assert heights[-1] / heights[0] == pytest.approx(900 / 50, rel=0.02)
    assert "onecard bench a&lt;b" in picture


def test_the_picture_does_without_what_was_not_measured():
    nothing = Spread(None, None, None)
    bare = msgspec.structs.replace(row(1), ttft_ms=nothing, itl_ms=nothing)
    picture = as_svg(report([bare], baseline="none", baseline_missing="not asked for"))
    assert shapes(picture, "circle") == []
    assert "nan" not in picture.lower()
    assert "none" not in [element.text for element in ET.fromstring(picture).iter(f"{SVG}text")]
