"""The examples of openai-python's own README that fine-tune, as they stand: only the environment names this server."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.tuning.conftest import School, chat

PAGE = 20
"""Jobs of a page in those examples."""


def examples() -> list[str]:
    """The package brings its README as its description."""
    blocks = re.findall(r"```python\n(.*?)```", str(metadata("openai").json["description"]), re.DOTALL)
    return [block for block in blocks if "fine_tuning" in block or '"fine-tune"' in block]


def run(example: str, client: Any = None) -> dict[str, Any]:
    """What its names stand for behind it. One that begins in the middle has a client."""
    names: dict[str, Any] = {"__name__": "example", "client": client}
    code = compile(example, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    awaited = eval(code, names)
    if awaited is not None:
        asyncio.run(awaited)
    return names


def the(*words: str) -> str:
    """The first example with all these words."""
    return next(block for block in examples() if all(word in block for word in words))


@pytest.fixture(scope="module")
def jobs(school: School) -> list[str]:
    """Ids of a page of jobs and one more, the newest first."""
    client, file = school.client(), school.upload("steps 4000 ms 20")
    made = [client.fine_tuning.jobs.create(model="chat", training_file=file).id for _ in range(PAGE + 1)]
    for job in made:
        client.fine_tuning.jobs.cancel(job)
    return made[::-1]


@pytest.fixture(autouse=True)
def environment(school: School, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{school.server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-plain")
    monkeypatch.chdir(tmp_path)


def test_a_file_is_uploaded(school: School, tmp_path: Path):
    before = {file.id for file in school.client().files.list()}
    (tmp_path / "input.jsonl").write_text(json.dumps(chat("steps 1")))

    run(the('"fine-tune"'))

    (made,) = (file for file in school.client().files.list() if file.id not in before)
    assert (made.filename, made.purpose) == ("input.jsonl", "fine-tune")


def test_all_jobs_come_page_by_page(jobs: list[str], capsys: pytest.CaptureFixture[str]):
    found = run(the("for job in client", "from openai import OpenAI"))["all_jobs"]
    assert [job.id for job in found][: PAGE + 1] == jobs
    capsys.readouterr()

    run(the("async for job"))

    assert re.findall(r"id='(ftjob-\w+)'", capsys.readouterr().out)[: PAGE + 1] == jobs


@pytest.mark.parametrize("client", [openai.AsyncOpenAI, openai.OpenAI])
def test_one_page_after_the_other(jobs: list[str], client: type, capsys: pytest.CaptureFixture[str]):
    by_page, by_data = the("has_next_page"), the("first_page.after")
    if client is openai.OpenAI:  # as a comment in them says
        by_page, by_data = (block.replace("await ", "") for block in (by_page, by_data))

    run(by_page, client())
    told = capsys.readouterr().out
    run(by_data, client())

    assert f"'after': '{jobs[PAGE - 1]}'" in told
    assert re.search(r"number of items we just fetched: [1-9]", told)
    assert capsys.readouterr().out.splitlines()[1:] == jobs[:PAGE]


def test_an_error_is_one_that_the_example_catches(capsys: pytest.CaptureFixture[str]):
    run(the("except openai.RateLimitError"))

    assert capsys.readouterr().out.splitlines()[:2] == ["Another non-200-range status code was received", "404"]
