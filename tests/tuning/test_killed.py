"""Jobs of a server or of a process that is killed: each goes on, and loses no more than one interval of checkpoints."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from itertools import pairwise
from pathlib import Path

import openai
import pytest

from tests.e2e.server import until
from tests.tuning.conftest import School, config_of

SAVE = 5


def trainer_of(server_pid: int) -> int | None:
    """The process that trains."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            parent = int((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"tests.tuning.trainer" in words and parent == server_pid:
            return int(status.parent.name)
    return None


SPOIL = """
INSERT INTO tuning_jobs (id, owner, state, record) SELECT 'ftjob-unread-' || state, owner, state, '{"model": 7}'
FROM tuning_jobs WHERE id = :id UNION SELECT 'ftjob-unread-running', owner, 'running', '{"model": 7}'
FROM tuning_jobs WHERE id = :id;
"""


def test_what_cannot_be_read_or_served_holds_up_no_other_at_the_start(school: School):
    """Two records of another version, a result that is gone, and the folder of a job whose server died meanwhile."""
    good, lost, ended = school.begin("steps 2"), school.begin("steps 2"), school.begin("steps 2")
    client = school.client()
    client.fine_tuning.jobs.cancel(ended.id)
    names = [school.ended(job)["fine_tuned_model"] for job in (good, lost)]
    assert school.server.stop() == 0
    with sqlite3.connect(school.folder / "onecard" / "files.sqlite") as tables:
        tables.execute(SPOIL, {"id": good.id})
    tables.close()
    shutil.rmtree(school.home(lost) / "result")
    school.home(ended).mkdir()

    school.start()

    assert [name for name in school.models() if name in names] == names[:1]
    until(lambda: not school.home(ended).exists(), 20)
    listed = [job.id for job in school.client().fine_tuning.jobs.list(limit=20)]
    assert good.id in listed
    assert not [one for one in listed if "unread" in one]
    with pytest.raises(openai.InternalServerError, match="What is kept of the job ftjob-unread-running cannot be read"):
        school.client().fine_tuning.jobs.retrieve("ftjob-unread-running")
    assert school.ended(school.begin("steps 2"))["status"] == "succeeded"
    assert "training_job_unread id=ftjob-unread-running" in school.server.log
    assert f"tuned_model_lost name={names[1]}" in school.server.log


def kill_of(school: School) -> None:
    """Of the trainer: it is there, or begun again in a moment."""
    until(lambda: trainer_of(school.server.process.pid), 60, what="no process trains")
    trainer = trainer_of(school.server.process.pid)
    if trainer is not None:
        os.kill(trainer, signal.SIGKILL)


def test_whatever_is_killed_the_job_ends_well(canary_path: Path, adapter: Path, tmp_path: Path, full_counts: bool):
    """Of three kills one is the server's, and two are the training process's."""
    n_kills = 20 if full_counts else 2
    n_steps = 25 * (n_kills + 1)
    rng = random.Random(7)
    school = School(config_of(canary_path), tmp_path, adapter)
    job = school.begin(f"steps {n_steps} ms 10 save {SAVE}")
    for kill in range(n_kills):
        school.at_step(job, 25 * kill + rng.randint(1, 20), 60)
        assert not [name for name in school.models() if name.startswith("ft:")]
        if kill % 3:
            kill_of(school)
            continue
        school.kill()
        n_done = len(school.steps(job))
        school.start()
        until(lambda: len(school.steps(job)) > n_done, 60)  # noqa: B023

    assert school.ended(job, 120)["status"] == "succeeded"

    steps = school.steps(job)
    assert {*steps} == {*range(1, n_steps + 1)}
    assert all(after == before + 1 or before - after < SAVE for before, after in pairwise(steps))
    assert steps.count(1) == 1
    name = school.job(job)["fine_tuned_model"]
    assert school.server.stop() == 0
    school.start()
    assert name in school.models()
    answer = school.client().chat.completions.create(model=name, messages=[{"role": "user", "content": "you"}])
    assert answer.choices[0].message.content == "echo: you"
    assert school.server.stop() == 0
