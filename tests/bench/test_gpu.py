"""The check of a card, as far as a machine without one can tell: the models it writes, and its script run dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from bench import random_q4
from bench.gpu import Clock
from tests.deploy.dockerfile import ROOT

Q4_K, Q6_K = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K


@pytest.mark.parametrize("kind", [Q4_K, Q6_K])
def test_random_blocks_have_the_spread_they_were_asked_for(kind):
    tensor = random_q4.Tensor("w", 64, 4096, kind, 0.02)
    weights = quants.dequantize(random_q4.values(tensor, np.random.Generator(np.random.SFC64(1))), kind)
    assert weights.shape == (64, 4096)
    assert weights.std() == pytest.approx(0.02, rel=0.01)
    assert abs(weights.mean()) < 0.001


def test_the_8b_shape_is_llama_3s():
    tensors = list(random_q4.tensors(random_q4.SHAPES["8b"]))
    n_weights = sum(tensor.rows * tensor.columns for tensor in tensors)
    n_bytes = sum(np.prod(tensor.bytes_shape) for tensor in tensors if tensor.std)
    assert n_weights == 8_030_261_248
    assert n_bytes / 2**30 == pytest.approx(4.58, abs=0.01)  # what Meta-Llama-3-8B weighs in Q4_K_M
    more = [tensor.name for tensor in tensors if tensor.type is Q6_K]
    assert len(more) == 2 * 16 + 1


def test_a_written_model_holds_the_tensors_and_silences_what_is_no_text(tmp_path):
    shape = replace(random_q4.SHAPES["tiny"], n_layers=1, n_vocab=13000)
    random_q4.write(tmp_path / "m.gguf", shape)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [tensor.name for tensor in random_q4.tensors(shape)]
    assert found["blk.0.attn_q.weight"].tensor_type is Q4_K
    output = quants.dequantize(found["output.weight"].data, Q6_K)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(set(tokens)) == output.shape[0] == 13000
    assert not output[tokens.index("<|im_end|>")].any()
    assert not output[tokens.index("<|reserved_0|>")].any()
    assert output[tokens.index("a")].any()


def test_what_there_is_no_time_for_is_named():
    clock = Clock(time.monotonic() + 10, [])
    assert clock.allows("short", 1)
    assert not clock.allows("long", 60)
    assert clock.skipped == ["long"]


@pytest.mark.engine
def test_the_script_run_dry_ends_with_the_table(tmp_path):
    script = [str(ROOT / "bench" / "gpu.sh"), "--dry", "--python", sys.executable, "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("no card; llama-cpp-python ")
    assert [line.split()[:2] for line in lines if line.startswith(("tiny ", "small "))] == [
        ["tiny", "1"],
        ["tiny", "2"],
        ["small", "1"],
        ["small", "2"],
    ]
    assert lines[-2].startswith("swap to first token: median ")
    assert lines[-1].startswith("ledger error: first load ")
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["efficiency"] > 0 for model in told["models"].values() for row in model["rows"])
    assert len(told["swap_s"]) == 4
    assert told["skipped"] == []
    assert "test_cuda.py" in (tmp_path / "pytest.txt").read_text()


def dry(out: Path, *, limit_s: int, pytest_options: str = "") -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "bench" / "gpu.sh"), "--dry", "--python", sys.executable, "--out", str(out)]
    env = {**os.environ, "PYTEST_ADDOPTS": pytest_options}
    command = [*script, "--limit", str(limit_s)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)


@pytest.mark.engine
def test_tests_that_fail_make_the_script_fail_after_the_table(tmp_path):
    done = dry(tmp_path, limit_s=40, pytest_options="--no-such-option")

    assert done.returncode == 1
    assert "tests failed (exit 4)" in done.stdout
    assert "left out for want of time" in done.stdout.splitlines()[-1]


def test_what_has_no_time_is_left_out(tmp_path):
    done = dry(tmp_path, limit_s=0)

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("tests left out for want of time; figures left out for want of time\n")
    assert not (tmp_path / "pytest.txt").exists()


def test_the_script_without_a_card_says_so(tmp_path):
    script = ["bash", str(ROOT / "bench" / "gpu.sh"), "--out", str(tmp_path)]
    path = "/usr/bin:/bin"
    if Path("/usr/bin/nvidia-smi").exists():
        pytest.skip("this machine has a card")
    done = subprocess.run(script, capture_output=True, text=True, check=False, env={"PATH": path})
    assert done.returncode == 1
    assert "no nvidia-smi. hint: --dry" in done.stderr
