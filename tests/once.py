"""What several processes of a run want is made once: by the first that asks; the others wait for it."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make` says of what it has written into the folder it is given; a make that failed is tried again.

    Only for files that no test changes: every process of the run reads them. A maker that is killed has told nothing
    and holds no lock, so the next one makes it. A run inside a test inherits the name of a process that it is not, and
    beside its folder lies what former runs made.
    """
    base = factory.getbasetemp()
    shared = base.parent if base.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}" else base
    with (shared / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = shared / f"{name}.told"
        if not told.exists():
            folder = factory.mktemp(name)
            pickled = pickle.dumps(make(folder))
            told.with_suffix(".part").write_bytes(pickled)
            told.with_suffix(".part").rename(told)
        result: T = pickle.loads(told.read_bytes())
    return result
