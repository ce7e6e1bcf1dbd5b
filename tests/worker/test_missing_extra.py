"""What is told where an extra's libraries are not installed: which extra to install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import backends.diffusion.backend as drawing
from backends.registry import BACKENDS
from demo.draw import PATH

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "gguf": "llama_cpp",
    "bnb": "transformers",
    "speech": "transformers",
    "voice": "hibari",
    "diffusion": "diffusers",
}
CHILD = """
import sys
for name in ({package!r}, "torch"):
    sys.modules[name] = None
from backends import registry
from backends.engine import LoadError
try:
    registry.engine_of({backend!r})
except LoadError as error:
    print(error.message)
"""


def test_every_backend_names_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*PACKAGES} <= {*BACKENDS}
    assert all(BACKENDS[name].extra in extras for name in PACKAGES)


@pytest.mark.parametrize("backend", PACKAGES)
def test_a_load_without_its_libraries_says_which_extra_brings_them(backend: str) -> None:
    """Given a worker in whose environment a backend's libraries are missing, when it loads, then so."""
    code = CHILD.format(package=PACKAGES[backend], backend=backend)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"the '{backend}' backend is not installed (module " in done.stdout
    assert done.stdout.endswith(f"hint: pip install 'onecard[{BACKENDS[backend].extra}]'\n")


def test_a_model_that_draws_says_it_before_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no diffusers, when such a model is described, as `serve` does, then a remark names the extra."""
    assert BACKENDS["diffusion"].describe(PATH, {}).remarks == ()
    monkeypatch.setattr(drawing, "version_of_package", lambda package: f"{package}-none")
    (remark,) = BACKENDS["diffusion"].describe(PATH, {}).remarks
    assert remark == "it cannot be loaded: diffusers and torch missing. hint: pip install 'onecard[images]'"
