"""Batches of a server that dies: no line is lost, none is answered twice, and models are loaded as rarely as can be."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from pathlib import Path

from tests.batches.conftest import Night, config_of
from tests.e2e.server import until
from tests.http.conftest import settings
from tests.many.conftest import BIG, write_model

MIB = 2**20


def test_whatever_kills_the_server_every_line_is_answered_once(canary_path: Path, tmp_path: Path, full_counts: bool):
    n_kills, n_lines = (10, 400) if full_counts else (1, 40)
    night = Night(config_of(canary_path), tmp_path)
    begun = night.begin([("fake", f"!slow 5 {n % 7 + 3}") for n in range(n_lines)])
    for kill in range(n_kills):
        least = (kill + 1) * n_lines // (n_kills + 2)
        client = night.client()
        until(lambda: client.batches.retrieve(begun.id).request_counts.completed >= least, 60)  # type: ignore[union-attr] # noqa: B023
        night.kill()
        night.start()

    done = night.ended(begun, 120)

    answered = Counter(one["custom_id"] for one in night.lines(done.output_file_id))
    assert answered == Counter(f"id-{n}" for n in range(n_lines))
    assert done.error_file_id is None
    with sqlite3.connect(tmp_path / "onecard" / "files.sqlite") as db:
        assert db.execute("SELECT COUNT(*) FROM lines").fetchone() == (0,)
    assert len(list((tmp_path / "onecard" / "files").iterdir())) == 2  # input and output

    # A server that drains waits for no line, and an end of its window ends a batch with what there is.
    late = night.begin([("fake", " quick"), ("fake", "!slow 100 1000")])
    client = night.client()
    until(lambda: client.batches.retrieve(late.id).request_counts.completed == 1, 20)  # type: ignore[union-attr]
    stopped = threading.Thread(target=night.server.stop)
    stopped.start()
    stopped.join(4)  # drain_s is 5
    assert not stopped.is_alive()
    with sqlite3.connect(tmp_path / "onecard" / "files.sqlite") as db:
        db.execute("UPDATE batches SET expires_at = 1 WHERE id = ?", (late.id,))
    night.start()
    ended = night.ended(late)
    assert (ended.status, len(night.lines(ended.output_file_id))) == ("expired", 1)
    assert [one["error"]["code"] for one in night.lines(ended.error_file_id)] == ["batch_expired"]
    assert night.server.stop() == 0


def test_lines_for_many_models_cost_a_load_of_each(tmp_path: Path, full_counts: bool):
    n_lines = 5000 if full_counts else 100
    config = {**settings(tmp_path), "models": {}, "memory": {"device": "cpu", "budget": f"{700 * MIB}"}}
    for name in "abcde":
        write_model(tmp_path / f"{name}.gguf", BIG)
        config["models"][name] = {"path": str(tmp_path / f"{name}.gguf"), "context": 64, "parallel": 4}
    night = Night(config, tmp_path)
    begun = night.begin([("abcde"[n % 5], f"line {n}") for n in range(n_lines)])

    done = night.ended(begun, 300)

    assert done.request_counts is not None
    assert done.request_counts.completed == n_lines
    loads = sum(n for name, n in night.counted("onecard_model_loads_total").items() if 'outcome="ok"' in name)
    assert loads == 5
    assert night.server.stop() == 0
