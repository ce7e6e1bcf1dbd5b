"""A child that may take no more than so much memory: what its engine says, as JSON. For `test_shortage`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from backends.bnb.loading import load
from backends.engine import LoadError
from backends.kernel import give_back_freed
from backends.messages import Failed, LoadModel, Sampling
from tests.gguf.driver import run, text_job

MIB = 2**20
PROMPT, N = "the quick brown fox jumps over the lazy dog " * 14, 20


def may_take(n_bytes: int | None) -> None:
    """Let this process's address space grow by so much from now on; None: as it likes."""
    if n_bytes is None:
        limit = resource.RLIM_INFINITY
    else:
        give_back_freed()
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmSize:"))
        limit = int(line.split()[1]) * 1024 + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def jobs(n: int, times: int) -> list[Any]:
    fields: dict[str, Any] = {"max_tokens": N, "ignore_eos": True, "sampling": Sampling(temperature=0.0)}
    return [text_job(f"{i} {PROMPT * times}", id=f"j{i}", **fields) for i in range(n)]


def said(engine: Any, n: int, times: int = 1) -> list[str]:
    """Each job's text, or the reason why there is none."""
    ends = [(outcome, outcome.end) for outcome in run(engine, jobs(n, times))]
    return [f"{end.code}: {end.message}" if isinstance(end, Failed) else one.text() for one, end in ends]


def main(folder: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"context": 512, "parallel": 3, "threads": 1}
    pool: dict[str, Any] = {"kv_tokens": 1024, "kv_layout": "unified"}
    found: dict[str, Any] = {}
    may_take(100 * MIB)
    try:
        load(LoadModel("fat", "bnb", folder, **fields), lambda _: None)
    except LoadError as error:
        found["load"] = [error.message, error.out_of_memory]
    may_take(None)
    engine: Any = load(LoadModel("fat", "bnb", folder, **fields, **pool), lambda _: None)
    found["before"] = said(engine, 3)
    found["together"] = []
    for mib in (45, 40, 35):  # whether and where it runs short differs from run to run
        may_take(mib * MIB)
        found["together"].append(said(engine, 3))
    may_take(1 * MIB)
    found["never"] = said(engine, 1, times=3)
    may_take(None)
    found["after"] = said(engine, 3)
    engine.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
