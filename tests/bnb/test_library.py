"""bitsandbytes comes without code from elsewhere, and without PyTorch's compiler, which takes longest to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

CHILD = """
import sys, torch
was = torch.compile
import backends.pytorch.library
print(torch.compile is was, sorted({"bitsandbytes", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_no_compiler_is_imported_and_the_way_to_it_stays() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout == "True ['bitsandbytes']\n"


FETCHING = """
import sys
sys.path.insert(0, sys.argv[1])
from backends import registry
from backends.engine import LoadError
try:
    registry.engine_of("bnb")
except LoadError as error:
    print(error.message)
print("bitsandbytes" in sys.modules)
"""


def test_where_it_would_fetch_code_no_model_is_loaded_with_it(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").touch()
    done = subprocess.run([sys.executable, "-c", FETCHING, str(tmp_path)], capture_output=True, text=True, check=True)
    told, imported = done.stdout.splitlines()
    assert told.startswith("the package 'kernels' is installed")
    assert told.endswith("hint: pip uninstall kernels")
    assert imported == "False"
