"""Batches of a server that dies: no line is lost, none is answered twice, and models are loaded as rarely as can be."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch

from tests.batches.conftest import ENDED, Night, config_of
from tests.e2e.server import until
from tests.http.conftest import settings
from tests.many.conftest import BIG, MIB, write_model

MODELS = "abcde"


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Night]:
    """Five models, and room for two."""
    config: dict[str, Any] = {**settings(tmp_path), "models": {}}
    config["memory"] = {"device": "cpu", "budget": f"{700 * MIB}"}
    for name in MODELS:
        write_model(tmp_path / f"{name}.gguf", BIG)
        config["models"][name] = {"path": str(tmp_path / f"{name}.gguf"), "context": 64, "parallel": 4}
    made = Night(config, tmp_path)
    yield made
    assert made.server.stop() == 0, made.server.log


def loads(log: str) -> list[str]:
    """Models whose loads were begun, in order."""
    return re.findall(r"\bloading model=(\w)", log)


def test_lines_for_many_models_cost_a_load_of_each_and_one_for_each_death_of_the_server(five: Night, full_counts: bool):
    n_lines, n_kills = (5000, 10) if full_counts else (100, 1)
    begun = five.begin([(MODELS[n % 5], f"line {n}") for n in range(n_lines)])
    logs = []
    for least in sorted(random.Random(23).sample(range(n_lines * 3 // 5), n_kills)):  # there are lines left to answer
        client = five.client()
        until(lambda: _answered(client.batches.retrieve(begun.id)) >= least, 60)  # noqa: B023
        assert client.batches.retrieve(begun.id).status not in ENDED
        five.kill()
        logs.append(five.server.log)
        five.start()

    done = five.ended(begun, 200)

    answered = Counter(one["custom_id"] for one in five.lines(done.output_file_id))
    assert answered == Counter(f"id-{n}" for n in range(n_lines))
    assert done.error_file_id is None
    lives = [loads(log) for log in (*logs, five.server.log)]
    assert all(len(set(life)) == len(life) for life in lives), lives
    assert sum(map(len, lives)) <= len(MODELS) + n_kills, lives
    with sqlite3.connect(five.folder / "onecard" / "files.sqlite") as db:
        assert db.execute("SELECT COUNT(*) FROM lines").fetchone() == (0,)
    assert len(five.client().files.list().data) == 2  # input and output


def _answered(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.completed


def test_a_server_that_drains_waits_for_no_line_and_the_end_of_its_window_ends_a_batch(
    canary_path: Path, tmp_path: Path
):
    night = Night(config_of(canary_path), tmp_path)
    late = night.begin([("fake", " quick"), ("fake", "!slow 100 1000")])
    client = night.client()
    until(lambda: _answered(client.batches.retrieve(late.id)) == 1, 20)
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
