"""A graphics card that is there and unused is said; the device and the budget are told in words."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from server.cli.greeting import device_words, engine_words
from server.cli.ps import card_warnings
from server.memory.gpu import Probes, built_for_cuda, probe, unused_warnings
from server.pool.status import HostStatus, MemoryStatus
from tests.cli.conftest import FAKE, Onecard
from tests.e2e.server import serving
from tests.present import present

PLAIN = Probes(asked="auto", device="cpu", card=False, hidden=False, llama=False, torch=False)
DRIVER = "the NVIDIA driver cannot be asked (NVMLError_LibRmVersionMismatch)"
GIB = 2**30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"torch": None}, []),
        ({"llama": None, "torch": None}, []),
        ({"card": True, "torch": None}, ["llama.cpp is built for the CPU"]),
        ({"card": True, "torch": True}, ["llama.cpp is built for the CPU"]),
        ({"card": True}, ["llama.cpp is built for the CPU", "PyTorch is built for the CPU"]),
        ({"card": True, "llama": None, "torch": True}, ["llama.cpp is not installed"]),
        ({"llama": True, "driver_error": DRIVER, "torch": None}, [DRIVER]),
        ({"llama": True, "driver_error": DRIVER, "card": True, "torch": True}, [DRIVER]),
        ({"card": True, "asked": "cpu"}, []),
        ({"card": True, "hidden": True}, []),
        ({"llama": True, "driver_error": "CUDA_VISIBLE_DEVICES hides every card", "hidden": True}, []),
        ({"card": True, "llama": True, "device": "cuda", "torch": True}, []),
        ({"card": True, "llama": True, "device": "cuda", "torch": None}, []),
        ({"llama": True, "device": "cuda"}, ["PyTorch is built for the CPU"]),
        ({"llama": True, "device": "cuda", "torch": True, "order": "FASTEST_FIRST"}, ["has no effect: cards"]),
        ({"llama": True, "device": "cuda", "torch": True, "order": "PCI_BUS_ID"}, []),
    ],
)
def test_what_is_said_follows_from_what_each_probe_said(change, told):
    said = unused_warnings(replace(PLAIN, **change))
    assert len(said) == len(told)
    assert all(part in sentence for part, sentence in zip(told, said, strict=True))


@pytest.mark.parametrize(
    ("visible", "hidden"), [(None, False), ("0", False), ("1,0", False), ("GPU-abc", False), ("", True), ("-1", True)]
)
def test_a_hidden_card_is_the_operators_choice(visible, hidden, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert probe("auto", "cpu", driver_error=None).hidden is hidden


def test_a_package_that_is_not_installed_is_told_apart():
    assert built_for_cuda("no_such_package_of_ours", "lib/*cuda*") is None
    assert built_for_cuda("server", "lib/*cuda*") is False
    assert built_for_cuda("server", "cli/*.py") is True


def test_device_and_budget_in_words():
    cpu = MemoryStatus("cpu", int(12.3 * GIB), 0, 0)
    card = MemoryStatus(
        "cuda", int(10.9 * GIB), 0, 0, device_name="NVIDIA GeForce RTX 4070 Ti", device_total_bytes=12 * GIB
    )
    beside = msgspec.structs.replace(card, host=HostStatus(20 * GIB, 0, 0))
    assert device_words(beside) == "NVIDIA GeForce RTX 4070 Ti, 10.9 of 12 GiB for models; 20 GiB of host memory"
    assert device_words(cpu) == "cpu, 12.3 GiB for models"
    assert device_words(card) == "NVIDIA GeForce RTX 4070 Ti, 10.9 of 12 GiB for models"
    assert card_warnings({"memory": {"warnings": ["a", "b"]}}) == ["warning: a", "warning: b"]


@pytest.mark.parametrize(
    ("llama", "torch", "told"),
    [
        (True, False, "llama.cpp is built for CUDA, PyTorch for the CPU"),
        (False, None, "llama.cpp is built for the CPU, PyTorch is not installed"),
        (None, True, "llama.cpp is not installed, PyTorch is built for CUDA"),
    ],
)
def test_how_the_engines_were_built_in_words(llama, torch, told):
    assert engine_words(llama, torch) == told


def test_greeting_and_status_tell_the_device(server):
    assert server.get("/v1/status")["memory"]["warnings"] == unused_warnings(probe("auto", "cpu", driver_error=None))


def test_a_file_that_is_no_model_has_no_request_to_copy(environment, tmp_path):
    (tmp_path / "junk.gguf").write_bytes(b"no model at all" * 10)
    with serving(tmp_path, models={"x": tmp_path / "junk.gguf"}, flags=("--budget", "1GiB"), env=FAKE) as server:
        server.stop()
        text = present(server.process.stdout).read()
    assert "warning: x: " in text
    assert "not GGUF" in text
    assert "curl" not in text
    assert "cpu, 1 GiB for models" in text
    assert "llama.cpp is built for the CPU" in text


def test_with_a_json_log_everything_is_json(tmp_path, onecard: Onecard):
    with serving(tmp_path, models={"demo": "demo"}, flags=("--log-format", "json"), env=FAKE) as server:
        server.stop()
        assert present(server.process.stdout).read() == "", "the greeting is one line"
        assert all(json.loads(line)["event"] for line in server.log.read_text().splitlines())
    answered = onecard("run", "demo", "hello", env={"ONECARD_LOGGING__FORMAT": "json"})
    assert (answered.returncode, answered.stdout) == (0, "echo: hello\n")


@pytest.mark.parametrize("wrong", [("--port", "99999"), ("--preload", "nope"), ("--model", "x=no-such.gguf")])
@pytest.mark.parametrize("how", [("--log-format", "json"), ("--log-format=json",), ()])
def test_with_a_json_log_a_server_that_cannot_start_says_so_in_json(wrong, how, onecard: Onecard):
    done = onecard("serve", *wrong, *how, env={} if how else {"ONECARD_LOGGING__FORMAT": "json"})
    assert done.returncode == 2
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["failed"]
