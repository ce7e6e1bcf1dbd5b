"""The Dockerfile, as far as a machine without Docker can tell: its steps are run in a clean folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, stages
from tests.e2e.server import _url
from tests.present import present

HADOLINT = Path(sys.executable).with_name("hadolint")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.skipif(not HADOLINT.exists(), reason="no hadolint here: it is in the test extra on Linux x86-64")
def test_a_lint_finds_nothing():
    done = subprocess.run([HADOLINT, "--format", "json", "Dockerfile"], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_stage_stands_on_another_or_on_an_image(variant):
    found = stages(variant)
    assert found["build"].base in found
    assert found["image"].base in found
    assert found[found["build"].base].base.partition(":")[0] == {"cpu": "debian", "cuda": "nvidia/cuda"}[variant]
    assert ("CUDA=on" in found[found["build"].base].environment()["CMAKE_ARGS"]) is (variant == "cuda")


def test_the_image_runs_as_an_ordinary_user_under_an_init():
    image = stages("cpu")["image"]
    uid = image.values("USER")[-1].partition(":")[0]
    assert int(uid) > 1000
    assert any(f"--uid {uid} " in step for step in image.values("RUN"))
    assert image.command("ENTRYPOINT") == ["tini", "--", "onecard"]
    assert "tini" in " ".join(image.values("RUN"))


def test_the_health_check_asks_the_exposed_port():
    image = stages("cpu")["image"]
    port = image.values("EXPOSE")[-1]
    assert f"127.0.0.1:{port}/health" in image.values("HEALTHCHECK")[-1]
    assert image.environment()["ONECARD_SERVER__PORT"] == port


def test_the_engine_is_the_pinned_one():
    pinned = PROJECT["project"]["optional-dependencies"]["gguf"][0]
    assert any(step.endswith(f" {pinned}") for step in stages("cpu")["build"].values("RUN"))


def test_what_is_copied_is_there_and_not_ignored():
    copied = [shlex.split(value)[:-1] for value in stages("cpu")["build"].values("COPY")]
    sources = [source for sources in copied for source in sources]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), source
    packages = {package.rstrip("*") for package in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(sources)


def has_cached_engine() -> bool:
    """Whether pip would take llama-cpp-python from its cache rather than compile it for minutes."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "list", "llama_cpp_python"], capture_output=True, text=True, check=False
    )
    version = PROJECT["project"]["optional-dependencies"]["gguf"][0].partition("==")[2]
    return f"llama_cpp_python-{version}" in listed.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the build stage's steps were run as they stand, with `/` meaning the folder."""
    if not has_cached_engine():
        pytest.skip("pip's cache holds no CPU build of llama-cpp-python; compiling one takes minutes")
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    for instruction, value in stages("cpu")["build"].steps:
        inside = value.replace("/opt/onecard", f"{root}/opt/onecard")
        if instruction == "COPY":
            *sources, target = shlex.split(value)
            for source in sources:
                _copy(ROOT / source, root / "src" / target / (Path(source).name if target == "./" else ""))
        elif instruction == "RUN" and not value.startswith("apt-get "):
            inside = inside.replace("python3 -m venv", f"{sys.executable} -m venv")
            done = subprocess.run(["sh", "-c", inside], cwd=root / "src", capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{value}\n{done.stdout}\n{done.stderr}"
    return root


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.fixture
def container(built: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of the image."""
    image = stages("cpu")["image"].environment()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("ONECARD_")}
    paths = {
        "PATH": f"{built}/opt/onecard/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    return {**outside, **image, **paths, "ONECARD_SERVER__PORT": "0"}


@pytest.mark.install
def test_the_built_image_refuses_to_serve_everyone_without_a_key(container, tmp_path):
    done = subprocess.run(
        ["onecard", "serve"], env=container, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no key" in done.stderr


@pytest.mark.install
def test_the_built_image_serves_the_demo_and_its_health_check_passes(container, tmp_path):
    image = stages("cpu")["image"]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*image.command("ENTRYPOINT")[2:], *image.command("CMD")],
            env={**container, "ONECARD_SERVER__API_KEYS": "sesame"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        url = _url(process, log)
        check = image.values("HEALTHCHECK")[-1].partition("CMD ")[2]
        command = [part.replace("http://127.0.0.1:8080", url) for part in json.loads(check)]
        assert subprocess.run(command, env=container, check=False).returncode == 0
        request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": "Bearer sesame"})
        with urllib.request.urlopen(request) as answer:
            assert b'"demo"' in answer.read()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        present(process.stdout).close()
