"""PyTorch finds no memory, for real: a child whose address space may not grow, over a model with fat rows of cells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.quantize.zoo import build

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
ASKED = r"PyTorch asked for ([\d.]+ [KM]iB more|more than there is), and [\d.]+ [KM]iB is free"
"""Which allocation fails first differs from run to run, and not every library says how much it wanted."""


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What it said, and its log."""
    folder = tmp_path_factory.mktemp("fat") / "model"
    build("llama3", folder, num_attention_heads=8, num_key_value_heads=8, head_dim=1024)
    command = [sys.executable, "-m", "tests.bnb.short_of_memory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_load_without_memory_tells_what_it_wanted_and_what_there_was(child: tuple[dict[str, Any], str]) -> None:
    message, out_of_memory = child[0]["load"]

    assert re.search(rf"{ASKED}. hint: ", message)
    assert out_of_memory is True


def test_little_memory_changes_no_text(child: tuple[dict[str, Any], str]) -> None:
    said, _ = child

    assert said["together"] == [said["before"]] * 3


def test_who_finds_no_memory_alone_is_told_so_and_the_engine_goes_on(child: tuple[dict[str, Any], str]) -> None:
    said, _ = child

    (told,) = said["never"]
    assert re.match(r"out_of_memory: no memory is left to go on: PyTorch asked for .* is free. hint: ", told)
    assert said["after"] == said["before"]
