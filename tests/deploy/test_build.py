"""deploy/installer/build.py: which llama.cpp a machine gets, and what is said of a card that is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from installer.build import choose, described, index_args
from installer.machine import Card, Compiler, Toolkit
from installer.words import InstallError

from tests.deploy.conftest import ADA, GCC, machine

CUDA13 = Toolkit("/usr/local/cuda/bin/nvcc", (13, 0), Path("/usr/local/cuda"), cublas=True)
BARE13 = replace(CUDA13, cublas=False)
CUDA12 = Toolkit("/opt/cuda/bin/nvcc", (12, 4), Path("/opt/cuda"), cublas=True)
NEW_GCC = Compiler("/usr/bin/g++", 16)
GCC14 = Compiler("/usr/bin/g++-14", 14)
OLD_DRIVER = replace(ADA, driver="550.144.03")
OLDER_DRIVER = replace(ADA, driver="470.256.02")
BLACKWELL = Card("NVIDIA GeForce RTX 5090", (12, 0), "580.65.06")
PASCAL = Card("NVIDIA GeForce GTX 1080", (6, 1), "580.65.06")
UNDRIVEN = Card("an NVIDIA card", None, None)


@pytest.mark.parametrize(
    ("facts", "name", "noted"),
    [
        ({}, "cpu", ""),
        ({"card": UNDRIVEN, "toolkits": (CUDA13,)}, "cpu", "`sudo apt install nvidia-driver`"),
        ({"card": ADA, "toolkits": (CUDA13,)}, "cuda-sm89", ""),
        ({"card": ADA, "toolkits": (CUDA12,)}, "cuda-sm89", ""),
        ({"card": ADA, "toolkits": (BARE13, CUDA12)}, "cuda-sm89", ""),
        ({"card": ADA}, "cuda13-sm89", ""),
        ({"card": ADA, "toolkits": (BARE13,)}, "cuda13-sm89", ""),
        ({"card": ADA, "toolkits": (CUDA12,), "compiler": GCC14, "compilers": (GCC14,)}, "cuda13-sm89", ""),
        ({"card": ADA, "compiler": None, "compilers": ()}, "cuda13-sm89", ""),
        ({"card": ADA, "compiler": NEW_GCC, "compilers": (NEW_GCC, GCC14)}, "cuda13-sm89", ""),
        ({"card": ADA, "compiler": NEW_GCC, "compilers": (NEW_GCC,)}, "cpu", "`sudo apt install g++-15`"),
        ({"card": BLACKWELL, "toolkits": (CUDA12,)}, "cuda13-sm120", ""),
        ({"card": BLACKWELL, "toolkits": (CUDA13,)}, "cuda-sm120", ""),
        ({"card": OLD_DRIVER}, "cpu", "needs a newer driver than 550.144.03"),
        ({"card": OLD_DRIVER}, "cpu", "update the driver to 580 or newer (`sudo apt install nvidia-driver`)"),
        ({"card": OLD_DRIVER, "toolkits": (CUDA12,)}, "cuda-sm89", ""),
        ({"card": OLD_DRIVER, "toolkits": (CUDA13,)}, "cpu", "CUDA 13.0 in /usr/local/cuda needs a newer driver"),
        ({"card": OLD_DRIVER, "toolkits": (CUDA13, CUDA12)}, "cuda-sm89", ""),
        ({"card": OLDER_DRIVER, "toolkits": (CUDA12,)}, "cpu", "needs a newer driver than 470.256.02"),
        ({"card": PASCAL, "toolkits": (CUDA13,)}, "cpu", "no longer compiles for this card"),
        ({"card": PASCAL, "toolkits": (CUDA12,)}, "cuda-sm61", ""),
        ({"card": PASCAL}, "cpu", "install CUDA 12"),
        ({"card": ADA, "toolkits": (replace(CUDA12, version=(11, 2)),)}, "cuda13-sm89", ""),
        ({"card": ADA, "processor": "riscv64"}, "cpu", "`sudo apt install nvidia-cuda-toolkit`"),
    ],
)
def test_a_machine_gets_the_build_that_its_card_runs(facts, name, noted):
    build = choose(machine(**facts), "auto", {})
    assert (build.name, noted in build.note) == (name, True)
    assert build.cuda is name.startswith("cuda")
    assert build.note.count("hint:") == (1 if noted else 0)
    assert bool(noted) == ("is built for the CPU" in build.note)


def test_an_asked_build_is_taken_or_refused():
    assert choose(machine(card=ADA, toolkits=(CUDA13,)), "cpu", {}).name == "cpu"
    assert choose(machine(card=ADA), "cuda", {}).cuda
    for facts, why in (
        ({}, "there is no NVIDIA card"),
        ({"card": UNDRIVEN}, "no driver"),
        ({"card": PASCAL}, "CUDA 12"),
    ):
        with pytest.raises(InstallError, match=why) as refused:
            choose(machine(**facts), "cuda", {})
        assert str(refused.value).count("hint:") == 1


def test_the_users_own_cmake_args_win():
    build = choose(machine(card=ADA, toolkits=(CUDA13,)), "auto", {"CMAKE_ARGS": "-DGGML_BLAS=on"})
    assert (build.name.partition("-")[0], build.cmake_args, build.cuda) == ("custom", "-DGGML_BLAS=on", False)
    assert choose(machine(), "cuda", {"CMAKE_ARGS": "-DGGML_CUDA=ON"}).cuda


def test_without_an_index_a_toolkit_is_taken_as_it_is():
    alone = {"PIP_NO_INDEX": "1"}
    assert choose(machine(card=ADA, toolkits=(BARE13,)), "auto", alone).name == "cuda-sm89"
    build = choose(machine(card=ADA), "auto", alone)
    assert (build.name, "no package index" in build.note) == ("cpu", True)


def test_a_processor_with_amx_gets_a_build_of_its_own():
    build = choose(machine(amx=True), "auto", {})
    assert (build.name, build.plain) == ("cpu-amx", False)
    assert build.cxx_flags.startswith("-include ")
    assert choose(machine(amx=True, card=ADA, toolkits=(CUDA13,)), "auto", {}).name == "cuda-sm89-amx"
    assert choose(machine(), "auto", {}).plain


def test_cmake_is_told_the_card_the_toolkit_and_the_compiler():
    args = choose(machine(card=ADA, toolkits=(CUDA13,)), "auto", {}).cmake_args
    assert args is not None
    told = dict(part.removeprefix("-D").split("=") for part in args.split())
    assert (told["GGML_CUDA"], told["CMAKE_CUDA_ARCHITECTURES"]) == ("on", "89")
    assert told["CMAKE_CUDA_COMPILER"] == "/usr/local/cuda/bin/nvcc"
    assert "CMAKE_CUDA_HOST_COMPILER" not in told
    two = machine(card=ADA, toolkits=(CUDA13,), compiler=NEW_GCC, compilers=(NEW_GCC, GCC14, GCC))
    args = choose(two, "auto", {}).cmake_args
    assert args is not None
    assert "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/g++-14" in args
    build = choose(machine(card=BLACKWELL, amx=True), "auto", {})
    root = Path("/v/site-packages/nvidia/cu13")
    told = dict(part.removeprefix("-D").split("=") for part in index_args(build, root, machine()).split())
    assert (told["CMAKE_CUDA_ARCHITECTURES"], told["CUDAToolkit_ROOT"]) == ("120", str(root))
    assert (told["CMAKE_CUDA_COMPILER"], told["GGML_CUDA_NO_VMM"]) == (f"{root}/bin/nvcc", "ON")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "no NVIDIA card; llama.cpp for cpu"),
        (
            {"card": ADA, "toolkits": (CUDA13,)},
            "NVIDIA GeForce RTX 4070 Ti (capability 8.9), driver 580.65.06; CUDA 13.0 in /usr/local/cuda; "
            "llama.cpp for cuda-sm89",
        ),
        (
            {"card": ADA},
            "NVIDIA GeForce RTX 4070 Ti (capability 8.9), driver 580.65.06; CUDA 13.0 from the package index; "
            "llama.cpp for cuda13-sm89",
        ),
        ({"card": UNDRIVEN}, "an NVIDIA card; no CUDA toolkit; llama.cpp for cpu"),
    ],
)
def test_what_was_found_is_one_line(facts, said):
    assert described(machine(**facts), choose(machine(**facts), "auto", {})) == said


@pytest.mark.parametrize("manager", ["apt", "dnf", "zypper", "pacman", None])
def test_what_is_missing_is_installed_by_this_machines_own_manager(manager):
    note = choose(machine(card=UNDRIVEN, manager=manager, sudo=False), "auto", {}).note
    assert f"`{manager or 'apt'} " in note
