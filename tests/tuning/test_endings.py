"""Jobs that are paused, cancelled, that fail and that crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from server.errors import ApiError
from server.tuning.endings import Endings
from server.tuning.job import JobError
from tests.e2e.server import until
from tests.tuning.conftest import School


def test_a_paused_job_stays_and_goes_on_where_it_was(school: School):
    client = school.client()
    job = school.begin("steps 40 ms 20 save 100")
    school.at_step(job, 3)

    paused = client.fine_tuning.jobs.pause(job.id)
    assert paused.model_dump()["paused"]
    until(lambda: "The job has left: it was paused (saved at step" in school.told(job)[-1], 20)
    n_done = len(school.steps(job))
    assert client.fine_tuning.jobs.pause(job.id).status == "queued"
    assert client.fine_tuning.jobs.resume(job.id).model_dump()["paused"] is False

    assert school.ended(job)["status"] == "succeeded"
    assert school.steps(job) == [*range(1, 41)]
    assert n_done < 40
    with pytest.raises(openai.ConflictError) as told:
        client.fine_tuning.jobs.cancel(job.id)
    assert "is succeeded, so it cannot be cancelled" in str(told.value)


def test_a_job_that_is_resumed_while_it_leaves_has_saved_what_it_did(school: School):
    client = school.client()
    job = school.begin("steps 8 ms 300 save 100")
    school.at_step(job, 3)

    client.fine_tuning.jobs.pause(job.id)
    client.fine_tuning.jobs.resume(job.id)

    assert school.ended(job)["status"] == "succeeded"
    assert school.steps(job) == [*range(1, 9)]


def test_a_paused_job_that_finds_the_disk_full_keeps_what_it_had_saved(school: School):
    client = school.client()
    job = school.begin("steps 30 ms 30 save 5 full")
    school.at_step(job, 7)

    client.fine_tuning.jobs.pause(job.id)
    until(lambda: "The job has left: it was paused" in school.told(job)[-1], 20)
    assert "no space left on device" in school.told(job)
    client.fine_tuning.jobs.resume(job.id)

    assert school.ended(job)["status"] == "succeeded"
    assert school.steps(job).count(5) == 1, "it goes on from its checkpoint"


def test_a_cancelled_job_leaves_nothing_behind_and_the_next_one_runs(school: School):
    client = school.client()
    first, second = school.begin("steps 4000 ms 20"), school.begin("steps 3")
    school.at_step(first, 2)
    until(lambda: school.job(second)["waiting_for"] is not None, 20)
    assert first.id in school.job(second)["waiting_for"]

    assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"

    assert school.ended(second)["status"] == "succeeded"
    assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
    until(lambda: not school.home(first).exists(), 20)


@pytest.mark.parametrize("last", ["yes", ""], ids=["right", "wrong"])
def test_a_job_that_is_cancelled_while_its_files_are_read_leaves_nothing_behind(school: School, last: str):
    client = school.client()
    long, short = school.upload("steps 1", 60_000, last=last), school.upload("steps 1")
    job = client.fine_tuning.jobs.create(model="chat", training_file=long, validation_file=short)
    until((school.home(job) / "training").exists, 20)

    assert school.job(job)["status"] == "validating_files"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    assert school.ended(school.begin("steps 1"))["status"] == "succeeded"  # read after it
    assert school.job(job)["status"] == "cancelled"
    assert not school.home(job).exists()


def test_a_process_that_crashes_is_begun_again_and_a_job_whose_every_one_does_has_failed(school: School):
    once, ever = school.begin("steps 12 save 5 abort-once 8"), school.begin("steps 12 save 5 abort-at 8")

    assert school.ended(once)["status"] == "succeeded"
    assert school.steps(once) == [*range(1, 8), *range(6, 13)]
    assert any("ended by signal SIGABRT; it goes on from the last checkpoint" in told for told in school.told(once))
    failed = school.ended(ever, 60)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "training_crashed")
    assert "ended 3 times without a checkpoint between" in failed["error"]["message"]


def test_what_a_process_says_of_its_end_and_of_its_memory_is_told(school: School):
    short, wrong = school.begin("steps 6 halve-at 2"), school.begin("fail line 7: it is too long")

    done = school.ended(short)
    assert done["hyperparameters"]["micro_batch"] == 1
    assert any("Out of memory, so the micro-batch is halved" in told for told in school.told(short))
    failed = school.ended(wrong)
    assert (failed["error"]["code"], failed["error"]["param"]) == ("bad_data", "training_file")
    assert failed["error"]["message"] == "line 7: it is too long"
    outcomes = school.counted("onecard_training_ends_total")
    assert {'{outcome="succeeded"}', '{outcome="failed"}'} <= {*outcomes}


def test_a_failed_jobs_folder_goes_also_where_there_is_no_room_for_the_event(tmp_path: Path):
    home, counted = tmp_path / "job", list[str]()
    home.mkdir()
    job: Any = SimpleNamespace(id="ftjob-1", state="running")

    class Full:
        """Tables on a full disk, in which a row may change and none may come."""

        def change(self, *_: object) -> Any:
            return job

        def folder(self, _: str) -> Path:
            return home

        def tell(self, *_: object, **__: object) -> None:
            if home.exists():
                raise ApiError(503, "the disk is full", code="files_unavailable")

    store: Any = Full()
    nothing: Any = None
    counts: Any = SimpleNamespace(count_training_end=counted.append)
    asyncio.run(Endings(store, nothing, counts, lambda: 0.0).fail(job, JobError("disk", "no space left")))

    assert not home.exists()
    assert counted == ["failed"]
