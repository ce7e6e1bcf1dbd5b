"""What is answered about fine-tuning jobs is what `/openapi.json` describes."""

from __future__ import annotations

from tests.surfaces.test_openapi import JOBS_OWN, strict, wrong_with
from tests.tuning.conftest import School

KEY = {"x-api-key": "sk-plain"}


def test_what_is_answered_about_a_job_is_what_is_described(school: School):
    document = strict(school.server.get("/openapi.json", headers=KEY).json())
    path = "/v1/fine_tuning/jobs"
    asked = {"model": "chat", "training_file": school.upload("steps 4 save 2")}
    made = school.server.post(path, asked, headers=KEY)
    assert made.status == 200, made
    assert wrong_with(document, path, made) == []
    job = school.client().fine_tuning.jobs.retrieve(made.json()["id"])
    assert school.ended(job)["status"] == "succeeded"
    assert wrong_with(document, path, school.server.get(path, headers=KEY)) == []
    for of in JOBS_OWN:
        answer = school.server.get(f"{path}/{made.json()['id']}{of}", headers=KEY)
        assert answer.status == 200, of
        assert wrong_with(document, f"{path}/{{id}}{of}", answer) == [], of
