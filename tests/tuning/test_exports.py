"""`onecard quantize ft:...`: what a job has made is merged by its name, while the server that has it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import demo
from server.cli.finding import is_known_here
from server.settings.config import Settings
from tests.tuning.conftest import School


def quantize(school: School, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", "quantize", *map(str, arguments)]
    env = {**os.environ, "XDG_DATA_HOME": str(school.folder)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_result_becomes_a_folder_by_its_name_and_its_base_is_known(
    school: School, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = school.ended(school.begin("steps 2", suffix="pirate"))

    done = quantize(school, job["fine_tuned_model"], "--to", "hf", "-o", tmp_path)

    assert done.returncode == 0, done.stderr
    made = load_file(tmp_path / "chat-pirate-hf" / "model.safetensors")
    base, pairs = load_file(demo.HF_PATH / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    a, b = (pairs[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted = base[f"{name}.weight"].astype(np.float32) + 2.0 * b @ a
    assert np.abs(made[f"{name}.weight"].astype(np.float32) - wanted).max() < 1e-3

    monkeypatch.setenv("XDG_DATA_HOME", str(school.folder))
    here = Settings.model_validate({"models": {"chat": {"path": str(demo.HF_PATH)}}})
    assert is_known_here(job["fine_tuned_model"], here), "a command without a server starts one that serves it"
    assert not is_known_here(job["fine_tuned_model"], Settings.model_validate({})), "its base is not there"

    unknown = quantize(school, "ft:chat:pirate:none", "--to", "hf", "-o", tmp_path)
    assert unknown.returncode == 2
    assert "no fine-tuning job has made ft:chat:pirate:none. hint: the last ones are" in unknown.stderr
    assert job["fine_tuned_model"] in unknown.stderr
    school.client().models.delete(job["fine_tuned_model"])
    gone = quantize(school, job["fine_tuned_model"], "--to", "hf", "-o", tmp_path)
    assert (gone.returncode, "no fine-tuning job has made" in gone.stderr) == (2, True)
