"""deploy/install.py: which build a machine gets, and that nothing is installed or compiled twice."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import ROOT
from tests.present import present


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The script as a module of its own, over an empty venv; no card, tool or processor of this machine is seen."""
    spec = present(importlib.util.spec_from_file_location("onecard_install", ROOT / "deploy" / "install.py"))
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "onecard_install", module)
    present(spec.loader).exec_module(module)
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    module.VENV, module.PYTHON, module.ROOT = venv, venv / "bin" / "python", tmp_path
    module.CONSTRAINTS, module.PROCESSOR = tmp_path / "constraints.txt", tmp_path / "cpuinfo"
    module.CONSTRAINTS.write_text("torch==1\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    return module


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_a_machine_without_a_card_builds_for_the_cpu(install, tmp_path):
    assert install.chosen_build().name == "cpu"
    program(tmp_path / "bin", "nvidia-smi", "echo 'No devices were found'; exit 6")
    assert install.chosen_build().name == "cpu"
    program(tmp_path / "bin", "nvidia-smi", "echo 'No devices were found'")
    assert install.chosen_build().name == "cpu"


def test_a_card_with_nvcc_builds_for_its_capability(install, tmp_path):
    program(tmp_path / "bin", "nvidia-smi", "echo 8.9; echo 12.0")
    program(tmp_path / "bin", "nvcc", "exit 0")
    build = install.chosen_build()
    assert build.name == "cuda-sm89"
    assert "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=89 " in build.cmake_args


def test_the_users_own_cmake_args_win(install, monkeypatch):
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
    build = install.chosen_build()
    assert build.name.startswith("custom-")
    assert build.cmake_args == "-DGGML_BLAS=on"


def test_a_processor_with_amx_gets_a_build_of_its_own(install, tmp_path, monkeypatch):
    install.PROCESSOR.write_text("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    monkeypatch.setenv("CXXFLAGS", "-g")
    program(install.VENV / "bin", "python", PIP)
    build = install.chosen_build()
    install.install_llama(build)
    assert build.name == "cpu-amx"
    compiled, *installed = (install.VENV / "bin" / "calls").read_text().splitlines()
    assert compiled.endswith(f"CMAKE_ARGS= CXXFLAGS=-g -include {ROOT / 'deploy' / 'amx_tiles.h'}")
    assert all("/onecard/wheels/cpu-amx/" in call for call in installed)


CONFIGURES = """
#include <immintrin.h>
struct alignas(64) Tiles { unsigned char palette, rest[63]; };
void configure() {
    Tiles tiles = {};
    tiles.palette = 1;
    tiles.rest[47] = 77;
    _tile_loadconfig(&tiles);
}
"""


def test_every_byte_of_a_tile_configuration_is_written(install, tmp_path):
    source = tmp_path / "configures.cpp"
    source.write_text(CONFIGURES)
    command = ["g++", "-O3", "-mamx-tile", "-include", str(install.AMX_TILES), "-S", "-o", "-", str(source)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ldtilecfg" in compiled
    assert "$77" in compiled


def test_a_stamp_covers_smaller_variants_and_changes_with_the_project(install, tmp_path):
    build = install.chosen_build()
    assert not install.is_installed("serve", build)
    install.stamp("install").write_text(install.fingerprint("install", build))
    assert install.is_installed("serve", build)
    assert install.is_installed("install", build)
    assert not install.is_installed("test", build)
    assert not install.is_installed("serve", install.Build("cuda-sm89", "-DGGML_CUDA=on"))
    (tmp_path / "pyproject.toml").write_text((tmp_path / "pyproject.toml").read_text() + "\n")
    assert not install.is_installed("serve", build)


PIP = """
echo "$@ CMAKE_ARGS=$CMAKE_ARGS CXXFLAGS=$CXXFLAGS" >> "$(dirname "$0")/calls"
echo "  [1/2] Building CXX object"
while [ $# -gt 0 ]; do
  if [ "$1" = --wheel-dir ]; then mkdir -p "$2"; touch "$2/llama_cpp_python-0.3.36-py3-none-any.whl"; fi
  shift
done
"""


def test_a_cuda_wheel_is_built_once_outside_pips_cache(install, tmp_path, capsys):
    program(install.VENV / "bin", "python", PIP)
    build = install.Build("cuda-sm89", "-DGGML_CUDA=on")
    install.install_llama(build)
    install.install_llama(build)
    (install.VENV / ".onecard-llama").unlink()
    install.install_llama(build)
    calls = (install.VENV / "bin" / "calls").read_text().splitlines()
    compiled = [call for call in calls if " wheel " in call]
    assert len(compiled) == 1
    assert "--no-cache-dir" in compiled[0]
    assert compiled[0].endswith("CMAKE_ARGS=-DGGML_CUDA=on CXXFLAGS=")
    wheel = tmp_path / "cache/onecard/wheels/cuda-sm89/llama_cpp_python-0.3.36-py3-none-any.whl"
    assert all(str(wheel) in call for call in calls if " install " in call)
    first, second = [line for line in capsys.readouterr().out.splitlines() if "llama.cpp for" in line]
    assert "compiled once per machine" in first
    assert second == f"onecard: llama.cpp for cuda-sm89: from {wheel.parent}"


def test_a_cpu_build_uses_pips_cache(install):
    program(install.VENV / "bin", "python", PIP)
    install.install_llama(install.chosen_build())
    (call,) = (install.VENV / "bin" / "calls").read_text().splitlines()
    assert "install --verbose llama-cpp-python==" in call
    assert "--no-cache-dir" not in call


def test_a_failed_build_ends_with_the_compilers_last_lines(install):
    program(install.VENV / "bin", "python", "echo 'error: no such header'; exit 1")
    with pytest.raises(install.InstallError, match=r"llama-build.log:\n.*no such header"):
        install.install_llama(install.chosen_build())


def test_progress_is_a_line_now_and_then_where_nothing_can_move(install, capsys):
    progress = install.Progress()
    for number in range(1, 200):
        progress.read(f"  [{number}/200] Building CXX object x.o")
    progress.end()
    assert capsys.readouterr().out == ""
    progress._last -= 30
    progress.read("  [200/200] Linking")
    assert capsys.readouterr().out.startswith("onecard: compiling llama.cpp 200/200 (0:")


def test_the_venv_of_a_card_sees_what_this_python_has(install, tmp_path):
    install.VENV, install.PYTHON = tmp_path / "over", tmp_path / "over" / "bin" / "python"
    install.make_venv(over_machine=True)
    code = "import pip, msgspec, sys; print(sys.prefix)"
    told = subprocess.run([install.PYTHON, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout.strip() == str(install.VENV)


def test_the_script_says_how_it_is_used():
    done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, str(ROOT / "deploy" / "install.py"), "nonsense"])
    assert done == 2
