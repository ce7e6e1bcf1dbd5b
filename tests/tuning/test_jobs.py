"""A fine-tuning job with OpenAI's client: from the file to a model that answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.tuning.conftest import School, chat


def test_a_file_becomes_a_model_that_answers(school: School):
    client = school.client()
    begun = client.fine_tuning.jobs.create(
        model="chat",
        training_file=school.upload("steps 12 save 5"),
        suffix="pirate",
        seed=42,
        metadata={"why": "test"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 2}}},
    )
    assert begun.status == "validating_files"

    done = school.ended(begun)

    name = f"ft:chat:pirate:{begun.id.removeprefix('ftjob-')[:8]}"
    assert (done["status"], done["fine_tuned_model"]) == ("succeeded", name)
    assert done["hyperparameters"]["n_epochs"] == 2
    assert done["hyperparameters"]["batch_size"] == 2
    assert (done["trained_tokens"], done["seed"], done["metadata"]) == (120, 42, {"why": "test"})
    assert name in school.models()
    answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "ahoy"}])
    assert (answer.model, answer.choices[0].message.content) == (name, "echo: ahoy")

    told = school.told(begun)
    assert told[0] == f"Created fine-tuning job: {begun.id}"
    assert told[-1] == "The job has successfully completed"
    assert "Step 12/12: training loss=0.0833" in told
    checkpoints = [*client.fine_tuning.jobs.checkpoints.list(begun.id)]
    assert [one.step_number for one in checkpoints] == [12, 10, 5]
    assert checkpoints[0].metrics.full_valid_loss == 0.25
    table, picture = (client.files.content(file).text for file in done["result_files"])
    assert [line.split(",")[0] for line in table.splitlines()] == ["step", *map(str, range(1, 13))]
    assert picture.startswith("<svg")
    assert name in picture
    assert begun.id in [job.id for job in client.fine_tuning.jobs.list(limit=1)]

    other = school.client("sk-anna")
    with pytest.raises(openai.PermissionDeniedError):
        other.models.delete(name)
    assert client.models.delete(name).deleted
    assert name not in school.models()
    assert not school.home(begun).exists()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "ahoy"}])


def test_two_jobs_of_one_name_make_two_models(school: School):
    first, second = [school.begin("steps 2", suffix="twin") for _ in range(2)]

    names = {school.ended(job)["fine_tuned_model"] for job in (first, second)}

    assert len(names) == 2
    assert names <= {*school.models()}


def test_whatever_is_wrong_with_a_job_is_told_by_name(school: School):
    client = school.client()
    file = school.upload("steps 1")

    def refused(**fields: Any) -> str:
        with pytest.raises(openai.BadRequestError) as told:
            client.fine_tuning.jobs.create(**{"model": "chat", "training_file": file, **fields})
        return f"{told.value.param}: {told.value.body['message']}"  # type: ignore[index]

    assert refused(model="fake").startswith("model: The model 'fake' is no Hugging Face folder")
    assert refused(training_file="file-none") == "training_file: invalid training_file: file-none"
    assert "'dpo'" in refused(method={"type": "dpo", "dpo": {}})
    assert refused(suffix="a:b").startswith("suffix: ")
    assert refused(integrations=[{"type": "wandb", "wandb": {"project": "x"}}]).startswith("integrations: ")
    both = {"hyperparameters": {"batch_size": 3, "micro_batch": 2}}
    assert refused(**both).startswith("micro_batch: 'micro_batch' is 2, and a batch of 3")
    full = {"method": "full"}
    assert refused(hyperparameters={**full, "rank": 4}).startswith("rank: 'rank' is an adapter's")
    assert refused(hyperparameters={**full, "alpha": 8.0}).startswith("alpha: ")
    share = {"hyperparameters": {"evaluation_share": 0.2}, "validation_file": file}
    assert refused(**share).startswith("evaluation_share: ")
    assert refused(hyperparameters={"n_epoch": 3}).startswith("hyperparameters.n_epoch: ")
    with pytest.raises(openai.BadRequestError, match="was not made by a fine-tuning job"):
        client.models.delete("fake")
    with pytest.raises(openai.NotFoundError):
        client.models.delete("ft:chat:none:0")
    batch = client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
    assert "was uploaded for 'batch'" in refused(training_file=batch.id)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")


def test_a_model_that_is_being_taught_is_not_deleted(school: School):
    full: Any = {"hyperparameters": {"method": "full"}}
    made = school.ended(school.begin("steps 2 whole", suffix="base", **full))
    name, client = made["fine_tuned_model"], school.client()
    learner = school.begin("steps 4000 ms 20", model=name)
    school.at_step(learner, 1)

    with pytest.raises(openai.ConflictError, match=f"is what {learner.id} teaches"):
        client.models.delete(name)

    client.fine_tuning.jobs.cancel(learner.id)
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        school.begin("steps 1", model=name)


BAD_FILES = {
    "role": (json.dumps({"messages": [{"role": "wizard", "content": "x"}]}).encode(), "line 2: "),
    "no answer": (json.dumps(chat("two", "")).encode(), "line 2: "),
    "no UTF-8": (b'{"messages": [{"role": "user", "content": "\xff"}]}', "line 2: "),
    "no JSON": (b"\x00" * 4096, "line 2: "),
    "no end": (b'"' + b"a" * 2**25, "line 2: "),
    "deep": (b"[" * 100_000, "line 2: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_line_that_is_wrong_ends_the_job_with_its_number(school: School, name: str):
    bad, told = BAD_FILES[name]
    client = school.client()
    data = b"\n".join([json.dumps(chat("one")).encode(), bad, json.dumps(chat("three")).encode()])
    file = client.files.create(file=("bad.jsonl", data), purpose="fine-tune")

    done = school.ended(client.fine_tuning.jobs.create(model="chat", training_file=file.id))

    error = done["error"]
    assert (done["status"], error["code"], error["param"]) == ("failed", "invalid_training_file", "training_file")
    assert told in error["message"]
    assert "line 3" not in error["message"]
    assert len(error["message"]) < 1000
