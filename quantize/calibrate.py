"""Asks a child process for the importance matrix of a model over a text."""

from __future__ import annotations

import os
from pathlib import Path

from backends.files import model_files
from quantize import child
from quantize.errors import QuantizeError
from quantize.files import replacing
from quantize.quantizer import Progress

WINDOW_TOKENS = 512
MAX_WINDOWS = 256
MIN_CHARACTERS = 2000
MAX_TEXT_BYTES = 2**30


def calibrate(
    model: Path, text: Path, target: Path, *, n_ctx_train: int, threads: int = 0, progress: Progress | None = None
) -> None:
    """Write the matrix to `target`, whole or not at all. Raises QuantizeError for a text that is too short."""
    check_text(text)

    def note(message: child.Message) -> None:
        if progress is not None:
            progress(message["done"], message["total"])

    with replacing(target) as temporary:
        request = {
            "model": str(model),
            "text": str(text),
            "target": str(temporary),
            "dataset": text.name,
            "window": min(WINDOW_TOKENS, n_ctx_train),
            "max_windows": MAX_WINDOWS,
            "threads": threads or os.cpu_count() or 1,
        }
        child.run("quantize.imatrix_main", request, note)


def check_text(text: Path) -> None:
    """A readable UTF-8 text that is long enough to say something."""
    try:
        content = model_files.read_text(text, MAX_TEXT_BYTES)
    except model_files.FileError as error:
        raise QuantizeError(f"the text cannot be read: {error}", usage=True) from None
    if len(content) < MIN_CHARACTERS:
        raise QuantizeError(
            f"the text {text.name} has {len(content)} characters; at least {MIN_CHARACTERS} are needed", usage=True
        )
