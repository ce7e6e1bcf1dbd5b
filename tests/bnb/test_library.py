"""bitsandbytes comes without PyTorch's compiler, which takes longer to import than all else."""

from __future__ import annotations

import subprocess
import sys

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
