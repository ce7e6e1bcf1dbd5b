"""deploy/bundle.py: what travels to a CUDA machine without a network, and how small its source of llama.cpp is."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import ROOT
from tests.present import present

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = "llama_cpp_python-9.9"


@pytest.fixture
def bundle(monkeypatch):
    spec = present(importlib.util.spec_from_file_location("onecard_bundle", ROOT / "deploy" / "bundle.py"))
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "onecard_bundle", module)
    present(spec.loader).exec_module(module)
    return module


def source(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{NAME}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name.partition("/")[2]: present(archive.extractfile(m)).read() for m in archive if m.isfile()}


def build_script(bundle) -> bytes:
    return "\n".join(["project(llama_cpp)", *(line for line, _, _ in bundle.PATCHES), "endif()"]).encode()


def test_the_source_keeps_what_a_build_reads_and_turns_the_rest_off(bundle, tmp_path):
    kept = ["pyproject.toml", "llama_cpp/__init__.py", "vendor/llama.cpp/src/llama.cpp"]
    kept += ["vendor/llama.cpp/ggml/src/ggml-cuda/a.cu", "vendor/llama.cpp/ggml/src/ggml-cpu/a.c"]
    kept += ["vendor/llama.cpp/cmake/build-info.cmake", "vendor/llama.cpp/vendor/nlohmann/json.hpp"]
    left = [".git/config", "docs/a.md", "vendor/llama.cpp/models/vocab.gguf", "vendor/llama.cpp/tools/server/a.cpp"]
    left += ["vendor/llama.cpp/ggml/src/ggml-metal/a.m", "vendor/llama.cpp/common/chat.cpp"]
    files = {name: name.encode() for name in (*kept, *left)} | {"CMakeLists.txt": build_script(bundle)}
    slim = bundle.slim(source(tmp_path / "old.tar.gz", files), tmp_path / "new.tar.gz")

    found = contents(slim)

    script = found.pop("CMakeLists.txt").decode()
    assert sorted(found) == sorted(kept)
    assert all(found[name] == name.encode() for name in kept)
    assert 'alongside python package" OFF)' in script
    assert "LLAMA_BUILD_COMMON OFF" in script


def test_a_source_of_another_shape_is_refused(bundle, tmp_path):
    old = source(tmp_path / "old.tar.gz", {"CMakeLists.txt": b"project(other)\n"})
    with pytest.raises(bundle.BundleError, match="not the one this script knows"):
        bundle.slim(old, tmp_path / "new.tar.gz")


def test_a_source_that_stays_large_is_refused(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MOST_SOURCE_BYTES", 100)
    old = source(tmp_path / "old.tar.gz", {"CMakeLists.txt": build_script(bundle)})
    with pytest.raises(bundle.BundleError, match="100 are the most"):
        bundle.slim(old, tmp_path / "new.tar.gz")


def test_everything_but_pytorch_is_asked_for(bundle):
    names = {bundle.requirement_name(line) for line in bundle.requirements(PROJECT)}
    alone = {bundle.requirement_name(line) for line in bundle.without_dependencies(PROJECT)}
    every = [*PROJECT["dependencies"]]
    every += [line for extra in ("gguf", "bnb", "gpu") for line in PROJECT["optional-dependencies"][extra]]
    assert {bundle.requirement_name(line) for line in every} - {"llama-cpp-python", "onecard"} <= names | alone
    assert {"cmake", "ninja", "scikit-build-core", "setuptools", "pytest"} <= names
    assert "torch" not in names | alone


def test_wheels_that_the_machine_has_stay_behind(bundle, tmp_path):
    for name in ("numpy-2.5-cp312.whl", "scikit_build_core-1.1-py3.whl", "numpy_extras-1-py3.whl"):
        (tmp_path / name).touch()
    bundle.drop(tmp_path, ["numpy", "scikit-build-core"])
    assert [file.name for file in tmp_path.iterdir()] == ["numpy_extras-1-py3.whl"]
    with pytest.raises(bundle.BundleError, match="no such wheel"):
        bundle.drop(tmp_path, ["numpy"])


def test_the_project_and_the_manifest(bundle, tmp_path):
    bundle.archive_project(tmp_path / "onecard.tar.gz")
    with tarfile.open(tmp_path / "onecard.tar.gz") as archive:
        assert {"onecard/bench/gpu.sh", "onecard/deploy/install.py", "onecard/pyproject.toml"} <= set(
            archive.getnames()
        )
    told = json.loads(json.dumps(bundle.manifest(tmp_path, "3.12")))
    assert told["python"] == "3.12"
    assert told["total_bytes"] == told["files"]["onecard.tar.gz"] == (tmp_path / "onecard.tar.gz").stat().st_size


@pytest.mark.install
def test_the_pinned_source_becomes_small(bundle, tmp_path):
    (requirement,) = (line for line in PROJECT["optional-dependencies"]["gguf"] if line.startswith("llama-cpp-python"))
    found = bundle.fetch_source(tmp_path, requirement)
    assert found.name == f"llama_cpp_python-{requirement.partition('==')[2]}.tar.gz"
    assert found.stat().st_size < 10_000_000
    assert "vendor/llama.cpp/ggml/src/ggml-cuda/ggml-cuda.cu" in contents(found)


def test_every_shell_script_is_clean():
    scripts = sorted(str(path) for folder in ("bench", "deploy", ".ci") for path in (ROOT / folder).rglob("*.sh"))
    assert scripts
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), *scripts], capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""
    assert checked.returncode == 0
