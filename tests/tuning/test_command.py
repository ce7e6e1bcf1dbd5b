"""`onecard train` against a running server, and without one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import demo
from tests import warm
from tests.tuning.conftest import School, chat

ROOT = Path(__file__).resolve().parents[2]


def onecard(school: School, folder: Path, *arguments: str, server: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder), "ONECARD_API_KEY": "sk-plain"}
    url = ["--url", school.server.url] if server else []
    return warm.run("server.cli", ["train", *arguments, *url], cwd=folder, env=env)


def test_a_table_teaches_a_model_whose_name_is_printed(school: School, tmp_path: Path):
    (tmp_path / "Ye Olde.csv").write_text('id,story\n1,"Once upon a time"\n2,"There was, once, a fish"\n')

    done = onecard(school, tmp_path, "Ye Olde.csv", "--column", "story", "--model", "chat", "--method", "qlora")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ft:chat:Ye-Olde:")
    job = next(iter(school.client().fine_tuning.jobs.list(limit=1))).model_dump()
    assert (job["suffix"], job["hyperparameters"]["method"]) == ("Ye-Olde", "qlora")
    assert school.client().files.content(job["training_file"]).text.splitlines() == [
        '{"text": "Once upon a time"}',
        '{"text": "There was, once, a fish"}',
    ]


def test_a_job_is_left_to_the_server_and_followed_by_its_id(school: School, tmp_path: Path):
    (tmp_path / "talk.jsonl").write_text(json.dumps(chat("steps 30 ms 20")) + "\n")

    begun = onecard(school, tmp_path, "talk.jsonl", "--model", "chat", "--detach").stdout.strip()
    followed = onecard(school, tmp_path, begun)

    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.strip() == f"ft:chat:talk:{begun.removeprefix('ftjob-')[:8]}"
    assert "New fine-tuned model created" in followed.stderr
    assert "is succeeded, so it cannot be cancelled" in onecard(school, tmp_path, begun, "--cancel").stderr


def test_a_dry_run_needs_no_server_and_what_is_wrong_is_told_before_an_upload(school: School, tmp_path: Path):
    base = str(demo.HF_PATH)
    (tmp_path / "talk.jsonl").write_text(json.dumps(chat("hi")) + "\n" + json.dumps(chat("hi", "")) + "\n")
    wrong = onecard(school, tmp_path, "talk.jsonl", "--model", base, "--dry-run", server=False)
    assert wrong.returncode == 2
    assert "talk.jsonl: line 2: " in wrong.stderr
    (tmp_path / "tale.txt").write_text("One.\nStill one.\n\nTwo.\n")
    plan = onecard(school, tmp_path, "tale.txt", "--model", base, "--dry-run", "--method", "full", server=False)
    assert plan.returncode == 0, plan.stderr
    assert "examples    2 (text)" in plan.stdout
    assert "method      full" in plan.stdout
    nameless = onecard(school, tmp_path, "tale.txt")
    assert "a model has to be named" in nameless.stderr


def test_what_a_job_that_is_there_cannot_heed_is_refused(school: School, tmp_path: Path):
    for words, told in (
        (("--epochs", "3"), "--epochs is for a new job"),
        (("--dry-run",), "--dry-run is for a new job"),
        (("--pause", "--resume"), "--pause and --resume contradict each other"),
    ):
        refused = onecard(school, tmp_path, "ftjob-1", *words)
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
