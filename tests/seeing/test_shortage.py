"""No memory for an image costs its own request: children whose address space may not grow. And towers that are computed
wrongly are told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.backend import Gguf
from tests.models import seeing
from tests.seeing.driver import build
from tests.seeing.short_of_memory import SCRATCH_MIB

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


def told(model: Path, free_mib: int) -> dict[str, Any]:
    """What a child said that had so much memory for an image."""
    command = [sys.executable, "-m", "tests.seeing.short_of_memory", str(model), str(free_mib)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("made", "free_mib", "why"),
    [
        ("plain", 20, "needs more memory to be decoded than there is"),
        ("llava", SCRATCH_MIB - 50, "found no memory for its encoder: PyTorch asked for"),
    ],
)
def test_no_memory_for_an_image_costs_its_own_request(made: str, free_mib: int, why: str, tmp_path: Path) -> None:
    found = told(build(tmp_path, made), free_mib)
    assert found["short"].startswith("out_of_memory: image 1 of the prompt (")
    assert why in found["short"]
    assert found["text"] == "Finished"
    assert found["after"] == ["Finished", "Finished"]


@pytest.mark.parametrize("class_row", [False, True])
def test_a_tower_that_llama_cpp_miscounts_is_told(class_row: bool, tmp_path: Path) -> None:
    model = seeing.build(tmp_path, "plain", class_row=class_row)
    remarks = " ".join(Gguf().describe(model, {}).remarks)
    assert ("one position off" in remarks) is class_row
