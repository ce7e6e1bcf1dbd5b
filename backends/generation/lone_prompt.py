"""A step that computes one prompt and nothing else, and how it ends early when its job is over.

Such a step may take a second on a processor. Its job is cancelled from another thread, which sets the context's flag;
the library looks at that between two operations. A step that serves others too is not interrupted.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from backends.generation.sequence import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy import uint8
    from numpy.typing import NDArray

    from backends.generation.sequence import Sequence
    from backends.generation.step_rows import StepRows


class LonePrompt:
    """Of one engine."""

    def __init__(self, flag: NDArray[uint8] | None) -> None:
        """`flag` is `DecoderContext.stop_flag`."""
        self._flag = flag
        self._lock = threading.Lock()
        self._job_id = ""

    @contextlib.contextmanager
    def computed(self, rows: StepRows, sequences: list[Sequence]) -> Iterator[None]:
        """While the step is computed: `interrupt` may end it, where it is of one prompt."""
        if self._flag is None or len(rows.shares) != 1 or sequences[rows.shares[0].sequence].phase is not Phase.PREFILL:
            yield
            return
        with self._lock:
            self._job_id = sequences[rows.shares[0].sequence].request.job.id
        try:
            yield
        finally:
            with self._lock:  # from here on no call of `interrupt` is for this step
                self._job_id, self._flag[0] = "", 0

    def interrupt(self, job_id: str) -> None:
        """The job is over: end the step, if it computes that job's prompt alone. Thread-safe."""
        with self._lock:
            if self._flag is not None and job_id == self._job_id:
                self._flag[0] = 1
