"""PyTorch finds no memory, for real: children whose address space may not grow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bnb.short_of_memory import FREE_MIB, SCRATCH_MIB
from tests.models import canary_kv
from tests.quantize.zoo import build

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
ASKED = r"PyTorch asked for [\d.]+ [MG]iB more, and [\d.]+ [KM]iB is free"
OUT_OF_MEMORY = rf"out_of_memory: no memory is left to go on: {ASKED}. hint: "
CUT_SHORT = ("oldest", "youngest")
"""Where the job stands that finds no memory alone."""
NOISE_MIB = 32
"""What a process may hold more after it has run short than before it; a pass of one token takes 4, of many hundreds."""


@dataclass(frozen=True)
class Told:
    """What a child said, and its log."""

    said: dict[str, Any]
    log: str


def told(kind: str, folder: Path, kept: str = "") -> Told:
    """What libraries keep for later is given back, so that what is held does not depend on what was computed before.

    The C library keeps freed memory, oneDNN a kernel for every number of rows, 4 MB each. How many there are is a
    matter of time: the lengths of passes follow the processor's pace.
    """
    command = [sys.executable, "-m", "tests.bnb.short_of_memory", kind, str(folder), kept]
    keeps_nothing = {
        "MALLOC_MMAP_THRESHOLD_": str(2**16),
        "MALLOC_ARENA_MAX": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    }
    env = {**os.environ, **keeps_nothing}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return Told(json.loads(done.stdout.splitlines()[-1]), done.stderr)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fat") / "model"
    build("llama3", folder, num_attention_heads=8, num_key_value_heads=8, head_dim=1024)
    return told("cells", folder).said


@pytest.fixture(scope="module", params=["computed", "kept"])
def passes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What is preempted is computed again, or kept and brought back."""
    folder = canary_kv.build_folder(tmp_path_factory.mktemp("canary"))
    kept = str(tmp_path_factory.mktemp("kept")) if request.param == "kept" else ""
    return told("passes", folder, kept)


def sizes(scene: dict[str, Any], *, fitting: bool) -> list[int]:
    """Tokens of the passes for which there was memory, or there was none."""
    return [n_tokens for n_tokens, fits in scene["passes"] if fits is fitting]


# Cells


def test_a_load_without_memory_tells_what_it_wanted_and_what_there_was(cells: dict[str, Any]) -> None:
    message, out_of_memory = cells["load"]

    assert re.search(rf"{ASKED}. hint: ", message)
    assert out_of_memory is True


def test_a_row_that_cannot_grow_costs_its_own_job_alone(cells: dict[str, Any]) -> None:
    assert re.match(OUT_OF_MEMORY, cells["never"]["never"])
    assert cells["after"] == cells["before"]


# Passes


def test_a_pass_without_memory_is_halved_until_there_is_some(passes: Told) -> None:
    scene = passes.said["together"]
    most = FREE_MIB // SCRATCH_MIB

    assert scene["texts"] == {name: passes.said["alone"][name] for name in "abc"}
    first, second = sizes(scene, fitting=False)
    assert first > most
    assert second == first // 2 > most
    assert scene["passes"][2] == [second // 2, True], "the third try is half as long again, and is enough"
    for n_tokens in (first, second):
        assert re.search(rf"no memory for a pass of {n_tokens} tokens: {ASKED}", passes.log)


@pytest.mark.parametrize("place", CUT_SHORT)
def test_who_finds_no_memory_alone_is_told_so_and_the_others_say_what_they_say_alone(passes: Told, place: str) -> None:
    texts = dict(passes.said[place]["texts"])

    assert re.match(OUT_OF_MEMORY, texts.pop("deep"))
    assert texts == {name: passes.said["alone"][name] for name in "ab"}


@pytest.mark.parametrize("place", CUT_SHORT)
def test_passes_that_were_too_long_for_one_are_not_shorter_for_the_others(passes: Told, place: str) -> None:
    scene = passes.said[place]["passes"]
    longest = max(sizes(passes.said["together"], fitting=True))
    last = max(i for i, (_, fits) in enumerate(scene) if not fits)

    assert sum(fits for _, fits in scene[:last]) < 200, "one token at a time would be more"
    assert len(scene[last:]) <= 1 + 20 + 2 * 130 // longest + 2


def test_memory_comes_back(passes: Told) -> None:
    said = passes.said

    assert max(said[scene]["more_bytes"] for scene in ("together", *CUT_SHORT, "later", "again")) <= NOISE_MIB * 2**20
    assert said["later"]["texts"]["long"] == said["alone"]["long"]
    assert said["again"]["passes"][:3] == said["together"]["passes"][:3], "long passes are tried again after a while"
    assert said["again"]["texts"] == said["together"]["texts"]
    assert said["after"] == {name: said["alone"][name] for name in ("a", "b", "deep")}
