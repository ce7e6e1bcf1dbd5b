"""Jobs and results asked for, changed and deleted by many at once: each answer is true, and every job ends well."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob

from backends.messages.training import Recipe
from server.errors import ApiError
from server.files.folder import DataFolder
from server.routes import fine_tuning
from server.tuning.job import Job, JobRecord, State, Wanted
from server.tuning.store import TABLES, TuningStore
from tests.e2e.server import until
from tests.tuning.conftest import ENDED, School

FULL: Any = {"hyperparameters": {"method": "full"}}


RECORD: Any = {
    "model": "chat",
    "training_file": "file-1",
    "validation_file": None,
    "created_at": 0,
    "seed": 1,
    "wanted": Wanted(),
}
STATES: tuple[State, ...] = ("queued", "paused", "queued", "running")
SUCCEEDS: tuple[State, ...] = ("queued", "running", "succeeded")
Ask = tuple[str, str, dict[str, Any]]


def statuses(school: School, asks: list[Ask]) -> list[tuple[int, dict[str, Any]]]:
    """All at once."""

    def ask(one: Ask) -> tuple[int, dict[str, Any]]:
        method, path, body = one
        answer = school.server.call(method, path, body or None, headers={"x-api-key": "sk-plain"})
        return answer.status, answer.json()

    with ThreadPoolExecutor(len(asks)) as threads:
        return list(threads.map(ask, asks))


def job_of(model: str, file: str) -> dict[str, Any]:
    return {"model": model, "training_file": file, "suffix": "storm", **FULL}


def test_a_base_is_deleted_or_taught_and_never_both(school: School):
    """Given results that were taught whole, when some delete and some teach each, then either the one or the other."""
    bases = [school.begin("steps 1 whole", suffix=f"base{n}", **FULL) for n in range(3)]
    file = school.upload("steps 400 ms 20 whole")
    for base in bases:
        name = school.ended(base)["fine_tuned_model"]
        teach = ("POST", "/v1/fine_tuning/jobs", job_of(name, file))
        delete: Ask = ("DELETE", f"/v1/models/{name}", {})
        asked = [teach, delete] * 4
        if base is bases[1]:
            asked.reverse()
        told = statuses(school, asked)
        taught = [body["id"] for one, (status, body) in zip(asked, told, strict=True) if one is teach and status == 200]
        gone = [body for one, (status, body) in zip(asked, told, strict=True) if one is delete and status == 200]

        assert bool(taught) is not bool(gone), told
        assert len(gone) <= 1
        assert {status for status, _ in told} <= {200, 404, 409}, told
        for job in taught:
            assert school.client().fine_tuning.jobs.cancel(job).status == "cancelled"
        assert not gone or name not in school.models()


def test_jobs_that_many_change_at_once_end_and_leave_nothing(school: School, full_counts: bool):
    """Cancelled, paused, resumed and looked at in any order, by eight at once."""
    rng = random.Random(11)
    client = school.client()
    file = school.upload("steps 30 ms 5 save 3")
    jobs: list[FineTuningJob] = []
    for _ in range(25 if full_counts else 3):
        jobs += [client.fine_tuning.jobs.create(model="chat", training_file=file) for _ in range(2)]
        asked: list[Ask] = []
        for _ in range(8):
            one, what = rng.choice(jobs).id, rng.choice(("cancel", "pause", "resume", "pause", "resume", ""))
            asked.append(("POST" if what else "GET", f"/v1/fine_tuning/jobs/{one}/{what}".rstrip("/"), {}))
        told = statuses(school, asked)
        assert {status for status, _ in told} <= {200, 409}, told

    def over() -> bool:
        for job in jobs:
            if school.job(job)["paused"]:
                client.fine_tuning.jobs.resume(job.id)
        return all(school.job(job)["status"] in ENDED for job in jobs)

    until(over, 60)
    ends = {job.id: school.job(job)["status"] for job in jobs}
    assert "failed" not in ends.values(), ends
    until(lambda: not [one for one in jobs if ends[one.id] == "cancelled" and school.home(one).exists()], 20)
    assert {school.job(job)["status"] for job in jobs if (school.home(job) / "result").is_dir()} <= {"succeeded"}
    assert "training_error" not in school.server.log
    assert "Traceback" not in school.server.log
    for job in jobs:
        events = school.told(job)
        assert events.count("The job was cancelled") == int(ends[job.id] == "cancelled"), events
        if ends[job.id] == "succeeded":
            assert client.models.delete(school.job(job)["fine_tuned_model"]).deleted


def test_a_job_that_is_cancelled_on_a_full_disk_is_withdrawn_all_the_same():
    """Its state was written; there is no room for the event."""
    job = Job(1, "ftjob-1", "anna", "cancelled", JobRecord(**RECORD))
    withdrawn: list[Job] = []

    def full(*_: object) -> None:
        raise ApiError(503, "the disk is full")

    tuning = SimpleNamespace(move=lambda *_: (job, True), tell=full)
    app: Any = SimpleNamespace(tuning=tuning, tuning_runner=SimpleNamespace(withdraw=withdrawn.append))
    with pytest.raises(ApiError, match="the disk is full"):
        asyncio.run(fine_tuning._moved(app, job, "cancelled", "The job was cancelled"))

    assert withdrawn == [job]


@pytest.fixture
def store(tmp_path: Path) -> TuningStore:
    return TuningStore(DataFolder(lambda: tmp_path, [TABLES]), time.time)


def test_only_a_paused_job_is_resumed(store: TuningStore):
    """Given one whose files are not read, and one that another has resumed meanwhile and that runs."""
    job = store.create(JobRecord(**RECORD), owner="anna")

    with pytest.raises(ApiError, match="The job is validating_files, so it cannot be resumed"):
        store.move(job.id, "queued", 0)

    for state in STATES:
        store.change(job.id, state)
    assert store.move(job.id, "queued", 0) == (store.get(job.id, None), False)
    assert store.get(job.id, None).state == "running"


def test_a_job_that_comes_behind_the_deletion_of_its_base_is_not_begun(store: TuningStore):
    """Its request has seen the model a moment ago."""
    name, made = "ft:chat:base:1", store.create(JobRecord(**RECORD), owner="anna")

    def edit(record: JobRecord) -> None:
        record.fine_tuned_model, record.result_folder = name, "/made"

    for state in SUCCEEDS:
        store.change(made.id, state, edit)
    learner = store.create(JobRecord(**{**RECORD, "model": name}), owner="anna")

    with pytest.raises(ApiError, match=f"is what {learner.id} teaches"):
        store.delete_result(made, name)

    def adapt(record: JobRecord) -> None:
        record.fine_tuned_model, record.result_folder = "ft:pirate", "/adapter"
        record.recipe = Recipe("/made", "/job", "/file", "text", method="lora")

    for state in SUCCEEDS:
        store.change(learner.id, state, adapt)
    with pytest.raises(ApiError, match=r"is the base of 'ft:pirate', an adapter. hint: delete that one first"):
        store.delete_result(made, name)
    store.delete_result(learner, "ft:pirate")
    store.delete_result(made, name)

    for again in (lambda: store.delete_result(made, name), lambda: store.create(learner.record, owner="anna")):
        with pytest.raises(ApiError, match=f"The model '{name}' was deleted") as told:
            again()
        assert told.value.status == 404
