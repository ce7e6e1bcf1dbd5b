"""A job makes way: it stands still while a request is answered, and leaves when a model needs its memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.server import until
from tests.many.conftest import BIG, write_model
from tests.tuning.conftest import School, config_of

MIB = 2**20


def test_a_job_stands_still_while_a_request_is_answered(school: School):
    job = school.begin("steps 100000 ms 5")
    school.at_step(job, 3)

    stream = school.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "!slow 20 30"}], stream=True
    )
    next(iter(stream))
    at_first = len(school.steps(job))
    training = school.status()["training"]
    words = [*stream]
    at_last = len(school.steps(job))

    assert words[-1].choices[0].finish_reason == "stop"
    assert (training["id"], training["model"], training["stands_still"]) == (job.id, "chat", True)
    assert (training["steps"], training["host_bytes"]) == (100000, school.job(job)["memory"]["host_bytes"])
    assert at_last == at_first
    until(lambda: len(school.steps(job)) > at_last, 20)
    school.client().fine_tuning.jobs.cancel(job.id)


@pytest.fixture
def narrow(
    canary_path: Path, adapter: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[School, FineTuningJob]]:
    """A server in which a job and the model `big` have no room beside each other, and a paused job."""
    config = config_of(canary_path, idle_after_s=1)
    write_model(tmp_path / "big.gguf", BIG)
    config["models"]["big"] = {"path": str(tmp_path / "big.gguf"), "context": 64, "parallel": 2}
    school = School(config, tmp_path, adapter)
    job = school.begin(getattr(request, "param", "steps 100000 ms 100 save 1000000"))
    school.at_step(job, 1)
    school.client().fine_tuning.jobs.pause(job.id)
    takes: int = school.job(job)["memory"]["host_bytes"]
    school.client().chat.completions.create(model="big", messages=[{"role": "user", "content": "hi"}])
    holds = school.status()["memory"]["reserved_bytes"]
    assert school.server.stop() == 0
    config["memory"]["budget"] = f"{max(takes, holds) + 8 * MIB}"
    yield school, job
    assert school.server.stop() == 0, school.server.log


def told_of(school: School, job: FineTuningJob) -> str:
    return "\n".join(school.told(job))


def ask(school: School, **fields: Any) -> str | None:
    messages: Any = [{"role": "user", "content": "hi"}]
    return school.client().chat.completions.create(model="big", messages=messages, **fields).choices[0].message.content


def test_a_job_leaves_for_a_model_and_comes_back_when_all_is_quiet(narrow: tuple[School, FineTuningJob]):
    school, job = narrow
    school.start()
    school.client().fine_tuning.jobs.resume(job.id)
    before = len(school.steps(job))
    until(lambda: len(school.steps(job)) > before + 3, 30)

    assert ask(school) == "echo: hi"

    assert "Checkpoint saved at step" in "".join(school.told(job))
    (asked,) = re.findall(r"training_leaves id=\S+ for=room step=(\d+)", school.server.log)
    (saved,) = re.findall(
        r"has left: a model or a lease needs its memory \(saved at step (\d+)\)", told_of(school, job)
    )
    assert int(saved) - int(asked) in (0, 1)  # the model waited for the step that was being done, and for none more
    before = len(school.steps(job))
    until(lambda: len(school.steps(job)) > before + 3, 30)  # `big` has left for it
    steps = school.steps(job)
    assert steps == [*range(1, len(steps) + 1)]
    assert school.counted("onecard_training_ends_total")['{outcome="room"}'] == 1


@pytest.mark.parametrize("narrow", ["steps 100000 ms 5 save 5 deaf"], indirect=True)
def test_a_job_beside_requests_leaves_for_a_lease_even_where_it_does_not_listen(narrow: tuple[School, FineTuningJob]):
    school, job = narrow
    school.config["training"] |= {"policy": "share", "leave_within_s": 1}
    school.start()
    school.client().fine_tuning.jobs.resume(job.id)
    before = len(school.steps(job))
    until(lambda: len(school.steps(job)) > before + 3, 30)

    stream = school.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "!slow 20 30"}], stream=True
    )
    next(iter(stream))
    at_first = len(school.steps(job))
    assert school.status()["training"]["stands_still"] is False
    assert [*stream][-1].choices[0].finish_reason == "stop"
    assert len(school.steps(job)) > at_first

    boss = {"x-api-key": "sk-boss"}
    wanted = {"bytes": school.job(job)["memory"]["host_bytes"], "seconds": 600, "name": "a game"}
    lease = school.server.post("/v1/memory/lease", wanted, headers=boss).json()

    assert any("needs its memory (it goes on from its last checkpoint)" in told for told in school.told(job))
    assert school.status()["training"] is None
    until(lambda: "memory" in (school.job(job)["waiting_for"] or ""), 20)
    n_done = len(school.steps(job))
    assert school.server.call("DELETE", f"/v1/memory/lease/{lease['id']}", headers=boss).status == 200
    until(lambda: len(school.steps(job)) > n_done + 3, 30)
    steps = school.steps(job)
    assert all(after == before + 1 or 0 <= before - after < 5 for before, after in pairwise(steps))


def test_a_job_that_has_the_memory_alone_leaves_for_none(narrow: tuple[School, FineTuningJob]):
    school, job = narrow
    school.config["training"]["policy"] = "exclusive"
    school.start()
    school.client().fine_tuning.jobs.resume(job.id)
    before = len(school.steps(job))
    until(lambda: len(school.steps(job)) > before + 3, 30)

    with pytest.raises(openai.ConflictError, match=r"free; \d+ MiB are held by a fine-tuning job\. hint: ask for"):
        school.client("sk-boss").post("/memory/lease", body={"bytes": 1 << 40, "name": "x"}, cast_to=object)
    with pytest.raises(openai.InternalServerError) as told:
        ask(school)

    assert told.value.status_code == 503
    assert told.value.code == "memory_busy"
