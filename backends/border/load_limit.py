"""A load's own limit of host memory: a model that takes several times its estimate fails alone and says so.

Without it the kernel's out-of-memory killer chooses, and other programs have less until then.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.engine import LoadError
from backends.machine.host import available_bytes
from backends.machine.kernel import at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

_STACK_BYTES: Final = 16 << 20
"""Of each thread that libraries start."""


class OverLimitError(Exception):
    """The load was stopped by its own limit, not by a lack of memory."""


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[None]:
    """Within it this process may take so many bytes more; 0: no limit. Raises OverLimitError."""
    if not limit_bytes:
        yield
        return
    allowed = limit_bytes + _STACK_BYTES * (os.cpu_count() or 1)
    before = _data_bytes()
    with at_most(allowed):
        try:
            yield
        except (LoadError, MemoryError) as error:
            short = isinstance(error, MemoryError) or error.out_of_memory
            left = allowed - (_data_bytes() - before)
            if short and not _limited_otherwise() and available_bytes() > left and "CUDA" not in str(error):
                raise OverLimitError from error
            raise


def _limited_otherwise() -> bool:
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
