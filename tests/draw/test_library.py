"""What importing diffusers leaves to others in a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")


@pytest.mark.parametrize("first", ["diffusers", "backends.diffusion.library"])
def test_networks_are_found_also_where_diffusers_was_imported_before(first: str) -> None:
    """Given a process that has imported diffusers, or has not, then networks of it are found, and what computes packed
    layers is too, once it is allowed."""
    lines = [
        "import importlib.util",
        "there = importlib.util.find_spec('bitsandbytes')",
        f"import {first}",
        "from backends.diffusion import library",
        "print(library.of_diffusers('UNet2DConditionModel').__name__)",
        "library.allow_bitsandbytes()",
        "assert (importlib.util.find_spec('bitsandbytes') is None) is (there is None)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "UNet2DConditionModel\n"
