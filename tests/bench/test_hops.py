"""One warm streamed chat: what is asked of a model's facts once is not asked again, and the walk does not grow."""

from __future__ import annotations

import pytest

from bench.hops import Walk, measure

pytestmark = pytest.mark.engine


def calls(walk: Walk, process: str, call: str) -> int:
    return sum(thread.count(call) for thread in walk.threads[process])


def test_a_warm_chat_asks_once_what_is_known_of_its_model_and_walks_no_further_than_it_does() -> None:
    walk = measure()

    assert walk.text.strip(), "the demo model answers"
    assert calls(walk, "server", "server/pool/overview.py:info") == 1, "a request asks once for a model's facts"
    assert calls(walk, "server", "server/memory/budget.py:need") == 0, "nothing is placed while the model is loaded"
    assert calls(walk, "worker", "backends/border/worker_main.py:_drain") >= 1, "the worker is seen, too"
    assert walk.n_changes < 600 + 25 * walk.n_chunks, "how many chunks there are is the machine's matter"
    told = walk.table()
    assert f"{len(walk.calls)} files" in told
    assert "| `server/pool/jobs.py` |" in told
