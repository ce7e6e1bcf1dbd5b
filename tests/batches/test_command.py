"""`onecard batch` and `onecard usage` against a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.batches.conftest import CHAT, Night, chat

ROOT = Path(__file__).resolve().parents[2]


def onecard(night: Night, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder), "ONECARD_API_KEY": "sk-boss"}
    command = [sys.executable, "-m", "server.cli", *arguments, "--url", night.server.url]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def write(folder: Path, *texts: tuple[str, str]) -> None:
    lines = [
        {"custom_id": str(n), "method": "POST", "url": CHAT, "body": chat(model, text)}
        for n, (model, text) in enumerate(texts)
    ]
    (folder / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_is_answered_beside_it_and_what_failed_is_told(night: Night, tmp_path: Path):
    write(tmp_path, ("fake", "a"), ("none", "b"))
    done = onecard(night, tmp_path, "batch", "ask.jsonl")
    assert done.returncode == 1, done.stderr
    (answer,) = (tmp_path / "ask.answers.jsonl").read_text().splitlines()
    assert json.loads(answer)["response"]["body"]["choices"][0]["message"]["content"] == "echo: a"
    assert "does not exist" in (tmp_path / "ask.answers.errors.jsonl").read_text()
    assert "is completed: 1 of 2 answered, 1 failed" in done.stderr
    used = onecard(night, tmp_path, "usage", "--by-day")
    assert used.returncode == 0, used.stderr
    assert ["admin_keys", "fake"] in [line.split()[1:3] for line in used.stdout.splitlines()]


def test_a_batch_is_left_to_the_server_and_followed_by_its_id(night: Night, tmp_path: Path):
    write(tmp_path, ("fake", "a"))
    begun = onecard(night, tmp_path, "batch", "ask.jsonl", "--detach").stdout.strip()
    assert begun.startswith("batch_")
    followed = onecard(night, tmp_path, "batch", begun, "-o", "out.jsonl")
    assert followed.returncode == 0, followed.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1
    too_late = onecard(night, tmp_path, "batch", begun, "--cancel")
    assert "The batch is completed, so it cannot be cancelled." in too_late.stderr


def test_what_is_no_batch_is_a_sentence(night: Night, tmp_path: Path):
    (tmp_path / "ask.jsonl").write_text("{}\n")
    assert "its first line is no request. hint: " in onecard(night, tmp_path, "batch", "ask.jsonl").stderr
    (tmp_path / "ask.jsonl").write_text(json.dumps({"url": CHAT, "body": {"model": "fake"}}) + "\n")
    refused = onecard(night, tmp_path, "batch", "ask.jsonl")
    assert refused.returncode == 1
    assert "line 1: The line needs a text as its custom_id." in refused.stderr
