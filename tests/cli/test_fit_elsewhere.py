"""`onecard fit` for a card that is not here, over files of which only the header is written."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.models import sparse

CARD = ("--device", "cuda", "--budget", "12GiB", "--host-budget", "32GiB")
SHAPES = {"30B-A3B": sparse.MOE_30B, "14B": sparse.DENSE_14B, "70B": sparse.DENSE_70B}


@pytest.fixture(autouse=True)
def alone(environment):
    """No server answers, whatever runs on this machine; speeds are those of the real engine."""
    environment["ONECARD_SERVER__PORT"] = "1"
    del environment["ONECARD_TEST_ENGINE"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file for each of the shapes."""
    folder = tmp_path_factory.mktemp("sparse")
    return {name: sparse.build(folder / f"{name}.gguf", shape) for name, shape in SHAPES.items()}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_large_files_get_a_plan_with_its_speed_at_once(onecard, files):
    onecard("fit", "demo", "--json")  # measures the machine where no test has yet
    for name, path in files.items():
        began = cpu_s()
        done = onecard("fit", str(path), *CARD, "--json")
        took_s = cpu_s() - began
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["fits"], told["device"]["budget_bytes"], told["host"]["budget_bytes"]) == (
            True,
            12 << 30,
            32 << 30,
        )
        assert told["device"]["total_bytes"] <= 12 << 30
        assert (told["speed"]["source"], told["source"]) == ("assumed", "header")
        assert told["speed"]["decode_tokens_per_s"] >= told["speed"]["full_decode_tokens_per_s"] > 0
        assert all(other["speed"]["decode_tokens_per_s"] > 0 for other in told["alternatives"])
        further = told["plan"].get("further") or {}
        assert ("expert_layers" in further, "ffn_layers" in further) == (name == "30B-A3B", name == "70B")
        assert took_s < 4  # 0.7 s on a machine with nothing else to do


def test_an_agent_with_32k_of_context_fits_beside_its_experts(onecard, files):
    done = onecard("fit", str(files["30B-A3B"]), *CARD, "--context", "32768", "--json")
    told = json.loads(done.stdout)
    assert (told["fits"], told["plan"]["context"]) == (True, 32768)
    more = json.loads(onecard("fit", str(files["30B-A3B"]), *CARD, "--json").stdout)
    assert told["plan"]["further"]["expert_layers"] > more["plan"]["further"]["expert_layers"]


def test_layers_that_are_named_are_kept_or_refused(onecard, files):
    path = str(files["30B-A3B"])
    kept = json.loads(onecard("fit", path, *CARD, "--expert-layers", "40", "--json").stdout)
    assert kept["plan"]["further"]["expert_layers"] == 40

    wrong = onecard("fit", path, *CARD, "--expert-layers", "49")
    assert (wrong.returncode, "48 layers of this model have experts, and expert_layers = 49" in wrong.stderr) == (
        1,
        True,
    )
    dense = onecard("fit", str(files["14B"]), *CARD, "--expert-layers", "3")
    assert "no layer of this model has experts" in dense.stderr


def test_what_neither_memory_holds_is_refused_with_both_sums(onecard, files):
    done = onecard("fit", str(files["70B"]), "--device", "cuda", "--budget", "6GiB", "--host-budget", "8GiB")
    assert done.returncode == 3
    assert "on the card and" in done.stderr
    assert "of host memory usable" in done.stderr


def test_layers_as_a_default_are_as_many_as_a_model_has(onecard, files, tmp_path):
    config = tmp_path / "onecard.toml"
    config.write_text(
        "[defaults]\nexpert_layers = 99\nffn_layers = 2\n"
        f'[models.moe]\npath = "{files["30B-A3B"]}"\n'
        f'[models.dense]\npath = "{files["14B"]}"\n'
        f'[models.own]\npath = "{files["14B"]}"\nffn_layers = 5\n'
        f'[models.cpu]\npath = "{files["14B"]}"\ngpu_layers = 0\n'
    )
    found = {}
    for name in ("moe", "dense", "own", "cpu"):
        done = onecard("fit", name, *CARD, "--config", str(config), "--json")
        assert done.stdout, done.stderr
        found[name] = json.loads(done.stdout)["plan"].get("further") or {}
    assert found == {"moe": {"expert_layers": 48}, "dense": {"ffn_layers": 2}, "own": {"ffn_layers": 5}, "cpu": {}}
