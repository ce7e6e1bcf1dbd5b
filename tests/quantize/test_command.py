"""`onecard quantize` as a user runs it: exit codes, what is printed, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.e2e.server import until
from tests.quantize.conftest import GGUF, HF
from tests.quantize.zoo import build

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-e2f9c1"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CANARY_SECRET": CANARY, "NO_COLOR": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "server.cli", "quantize", *map(str, arguments)]


def onecard(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.run("server.cli", ["quantize", *map(str, arguments)], env=environment(), timeout=300)


def test_outputs_are_written_and_told_how_to_serve(tmp_path: Path) -> None:
    done = onecard(HF, "--name", "demo", "--to", "Q8_0,Q4_K_M", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Q4_K_M" in done.stdout
    assert f"onecard serve --model demo={tmp_path / 'out' / 'demo-Q8_0.gguf'}" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo-Q4_K_M.gguf", "demo-Q8_0.gguf"]
    assert all(CANARY.encode() not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_dry_run_is_json_when_asked(tmp_path: Path) -> None:
    done = onecard(GGUF, "--to", "Q6_K", "-o", tmp_path / "out", "--dry-run", "--json")
    answer = json.loads(done.stdout)
    assert answer["outputs"][0]["type"] == "Q6_K"
    assert answer["outputs"][0]["memory_bytes"]["4096"] > answer["outputs"][0]["size_bytes"]
    assert answer["outputs"][0]["memory_bytes"]["32768"] is None
    assert answer["written"] == []
    assert not (tmp_path / "out").exists()


def test_a_configured_model_is_a_source_by_its_names(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text(f"[models.chat]\npath = {str(GGUF)!r}\naliases = ['gpt-4o']")
    done = onecard("gpt-4o", "--to", "Q6_K", "--dry-run", "--json", "--config", tmp_path / "o.toml", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["type"] == "Q6_K"
    (tmp_path / "o.toml").write_text(
        f"[models.chat]\npath = {str(GGUF)!r}\naliases = ['gpt-4o']\n[models.chat.adapters]\npirate = './pirate'"
    )
    taught = onecard("gpt-4o:pirate", "--to", "Q6_K", "--dry-run", "--config", tmp_path / "o.toml")
    assert (taught.returncode, f"no file or folder {tmp_path / 'pirate'}" in " ".join(taught.stderr.split())) == (
        2,
        True,
    )
    (tmp_path / "o.toml").write_text("[memory]\nvram = 1")
    wrong = onecard(GGUF, "--to", "Q6_K", "--dry-run", "--config", tmp_path / "o.toml")
    assert (wrong.returncode, "memory.vram is an unknown key" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere", "--to", "Q8_0"], 2, "nowhere"),
        ([HF, "--to", "Q4_KM"], 2, "'Q4_KM' is no type; the nearest is Q4_K_M"),
        ([HF, "--to", "Q9"], 2, "'Q9' is no type. hint: F16, Q8_0,"),
        ([HF, "--to", "Q8_0", "--device", "gpu"], 2, "--device 'gpu': auto, cuda or cpu"),
        ([HF], 2, "nothing to make"),
        ([HF, "--fit", "lots"], 2, "a size looks like"),
        ([HF, "--fit", "1MiB"], 3, "does not fit 1 MiB"),
        ([HF, "--fit", "1MiB"], 3, "hint: no smaller context makes it fit"),
        ([HF, "--fit", "50MiB", "--context", "4096", "--device", "cpu"], 3, "hint: --context 2048 fits"),
        ([GGUF, "--to", "bnb-4bit"], 2, "bitsandbytes quantises Hugging Face folders"),
        ([GGUF, "--to", "Q8_0", "--tensor-type", "x"], 2, "write REGEX=TYPE"),
        ([GGUF, "--to", "Q8_0", "--imatrix", "missing"], 2, "does not exist. hint: --calibrate"),
        ([HF, "--to", "Q8_0", "--converter", "/"], 2, "holds no convert_hf_to_gguf.py"),
    ],
)
def test_bad_request_is_a_sentence_and_an_exit_code(
    tmp_path: Path, arguments: list[object], code: int, sentence: str
) -> None:
    done = onecard(*arguments, "-o", tmp_path / "out")
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").glob("*")) == []


def test_memory_is_of_the_device_that_is_named_and_that_serve_would_take() -> None:
    answers = {
        device: json.loads(onecard(HF, "--to", "F16", "--dry-run", "--json", "--device", device).stdout)
        for device in ("cpu", "cuda", "auto")
    }
    memory = {device: answer["outputs"][0]["memory_bytes"]["4096"] for device, answer in answers.items()}
    assert memory["cuda"] - memory["cpu"] > 300 * 2**20
    assert memory["auto"] == memory[answers["auto"]["device"]]
    fit = [sys.executable, "-m", "server.cli", "fit", "demo", "--context", "4096", "--parallel", "1", "--device", "cpu"]
    known = {name: value for name, value in environment().items() if name != "CANARY_SECRET"}
    estimated = subprocess.run([*fit, "--json"], capture_output=True, text=True, env=known, check=True)
    assert memory["cpu"] == pytest.approx(json.loads(estimated.stdout)["total_bytes"], rel=0.1)
    table = onecard(HF, "--to", "F16", "--dry-run", "--device", "cuda").stdout
    assert "MEMORY is predicted for one request of so many tokens on cuda" in table


def test_a_context_below_the_usual_ones_is_estimated(tmp_path: Path) -> None:
    short = build("bert", tmp_path / "short")
    answer = json.loads(onecard(short, "--to", "F16", "--dry-run", "--json").stdout)
    fitted = json.loads(onecard(HF, "--fit", "1GiB", "--context", "512", "--dry-run", "--json").stdout)
    assert [n is not None for n in answer["outputs"][0]["memory_bytes"].values()] == [True]
    assert fitted["outputs"][0]["memory_bytes"]["512"] < fitted["outputs"][0]["memory_bytes"]["4096"]


def test_interruption_while_measuring_names_what_is_finished(tmp_path: Path, other_text: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(other_text.read_text() * 8)
    flags = ("--name", "m", "--to", "Q8_0", "--report", "--text", long, "--windows", "100000", "-o", tmp_path / "out")
    with subprocess.Popen(command(HF, *flags), stderr=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("measuring"):
                break
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert f"no half output is left; finished: {tmp_path / 'out' / 'm-Q8_0.gguf'}" in rest
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m-Q8_0.gguf"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_no_half_file_and_keeps_the_old_one(tmp_path: Path, other_text: Path, number: int) -> None:
    long = tmp_path / "long.txt"
    long.write_text(other_text.read_text() * 4)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m-Q4_0.gguf").write_bytes(b"precious")
    arguments = command(HF, "--name", "m", "--to", "Q4_0", "--calibrate", long, "-o", out, "--force")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("writing one output"):
                break
        child.send_signal(number)
        rest = child.stderr.read()
    assert child.returncode == 130
    assert "interrupted: no half output is left" in rest
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"m-Q4_0.gguf": b"precious"}


def test_what_a_killed_command_leaves_is_gone_with_the_next_one(tmp_path: Path, other_text: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(other_text.read_text() * 4)
    out = tmp_path / "out"
    arguments = command(HF, "--name", "m", "--to", "Q4_0", "--calibrate", long, "-o", out)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("writing one output"):
                break
        until(lambda: list(out.glob(".onecard-*/base.gguf")), 30)  # the calibration takes seconds from here
        child.kill()
    assert list(out.iterdir()) != []

    done = onecard(HF, "--name", "m", "--to", "Q8_0", "-o", out)

    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["m-Q8_0.gguf"]
