"""The recording of a request: its file read, and what is wrong with it told as of that field."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engine import JobError
from backends.files import model_files, recordings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


class Recording(recordings.Recording):
    """One file, open until `close`; what its base raises are JobErrors here."""

    def __init__(self, path: str, *, n_bytes: int, max_s: float) -> None:
        """Raises JobError where it is no audio, or is known to be too long before it is decoded."""
        with _refusing():
            super().__init__(model_files.read_bytes(Path(path), n_bytes), max_s=max_s)

    def pieces(self) -> Iterator[NDArray[np.int16]]:
        """See the base. Raises JobError."""
        with _refusing():
            yield from super().pieces()


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except model_files.FileError as error:
        raise JobError("unsupported_media", f"The file cannot be transcribed: {error}", param="file") from None
    except recordings.RecordingError as error:
        told = f"The file cannot be transcribed: {error}" if error.code == "unsupported_media" else str(error)
        raise JobError(error.code, told, param="file") from None
