"""A step that computes one prompt and nothing else, and how it ends early: with its job, or for what comes meanwhile.

Such a step may take two seconds on a processor. From another thread the context's flag is set; the library looks at
that between two operations. A step that serves others too is not interrupted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from backends.generation.batching import ALONE_US
from backends.generation.sequence import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy import uint8
    from numpy.typing import NDArray

    from backends.generation.pace import Pace
    from backends.generation.sequence import Sequence
    from backends.generation.step_rows import StepRows


class LonePrompt:
    """Of one engine."""

    def __init__(self, flag: NDArray[uint8] | None, *, yields: bool) -> None:
        """`flag` is `DecoderContext.stop_flag`; `yields` `Batcher.ends_steps`: a card computes to the end."""
        self._flag = flag
        self._yields = yields
        self._lock = threading.Lock()
        self._job_id = ""
        self.waits: Callable[[], bool] = lambda: False
        """Whether something came before the step began, behind what it was planned from."""
        self._yields_until_us = 0.0
        """From then on it is cheaper to wait for the step's end than to compute all of it again; on `perf_counter`."""

    @contextlib.contextmanager
    def computed(self, rows: StepRows, sequences: list[Sequence], pace: Pace) -> Iterator[None]:
        """While the step is computed: `interrupt` and `make_way` may end it, where it is of one prompt."""
        if self._flag is None or len(rows.shares) != 1 or sequences[rows.shares[0].sequence].phase is not Phase.PREFILL:
            yield
            return
        sequence = sequences[rows.shares[0].sequence]
        takes_us = pace.prefill_us(sequence.n_past, rows.n_tokens)
        yields = self._yields and takes_us > ALONE_US and not sequence.hurried
        with self._lock:
            self._job_id = sequence.request.job.id
            self._yields_until_us = time.perf_counter_ns() / 1000 + takes_us / 2 if yields else 0.0
            if yields and self.waits():
                self._flag[0] = 1
        try:
            yield
        finally:
            with self._lock:  # from here on no call of `interrupt` or `make_way` is for this step
                self._job_id, self._yields_until_us, self._flag[0] = "", 0.0, 0

    def interrupt(self, job_id: str) -> None:
        """The job is over: end the step, if it computes that job's prompt alone. Thread-safe."""
        with self._lock:
            if self._flag is not None and job_id == self._job_id:
                self._flag[0] = 1

    def make_way(self, now_us: float) -> None:
        """Something waits: end the step, if it is long, of one prompt, and not half done. Thread-safe.

        What it has computed is lost, so a prompt loses at most half a step, and that once.
        """
        with self._lock:
            if self._flag is not None and now_us < self._yields_until_us:
                self._flag[0] = 1
