"""The user's own llama.cpp checkout as converter, in its own environment, for architectures that are not known here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from quantize.errors import QuantizeError

SCRIPT = "convert_hf_to_gguf.py"


def find(checkout: Path) -> tuple[Path, Path]:
    """Python and script of a checkout (or the script itself). Raises QuantizeError."""
    script = checkout / SCRIPT if checkout.is_dir() else checkout
    if script.name != SCRIPT or not script.is_file():
        raise QuantizeError(f"{checkout} holds no {SCRIPT}. hint: --converter takes a llama.cpp checkout", usage=True)
    for folder in (".venv", "venv"):
        python = script.parent / folder / "bin" / "python"
        if python.is_file():
            return python, script
    return Path("python3"), script


def run(checkout: Path, source: Path, target: Path) -> None:
    """Write the F16 file of a model folder to `target`. Raises QuantizeError with the script's crash reason."""
    python, script = find(checkout)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    command = [str(python), str(script), str(source), "--outfile", str(target), "--outtype", "f16"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise QuantizeError(f"{python} cannot be run: {error.strerror}") from None
    if done.returncode != 0 or not target.is_file():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise QuantizeError(f"{script.name} failed (exit code {done.returncode}): {last[:300]}")
