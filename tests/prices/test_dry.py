"""Dry loads from the server's side: real children that answer, refuse, die and hang."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from backends import dry
from backends.plan import Plan

pytestmark = pytest.mark.engine

PLAN = Plan(1024, 2, "f16", 0, "cpu")
STUB = """
import json, os, sys, time
for line in sys.stdin:
    question = json.loads(line)
    name = os.path.basename(question["path"])
    if name == "abort": os.abort()
    if name == "hang": time.sleep(3600)
    if name == "babble": print("what?", flush=True); continue
    if name == "secret": name = os.environ.get("ONECARD_API_KEY", "")
    plan = {"cache": 1, "compute": {"CPU": len(name)}, "output": {}}
    print(json.dumps({"weights": 7, "plans": [plan] * len(question["plans"])}), flush=True)
"""


async def collect(*paths: Path, within_s: float = 20.0) -> dict[str, dry.Answer]:
    questions = [dry.Question(path, (PLAN,)) for path in paths]
    return {q.path.name: answer async for q, answer in dry.ask(questions, within_s=within_s)}


async def test_one_child_prices_several_models(canary_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    told = await collect(broken, canary_path)

    assert told["broken.gguf"] == (None,)
    (sizes,) = told[canary_path.name]
    assert sizes is not None
    assert sizes.weights > 2**20
    assert sizes.cache == 2**19


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child of the same protocol that misbehaves by the name of the file."""
    package = tmp_path / "stub" / "backends" / "gguf"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "dryrun.py").write_text(STUB)
    monkeypatch.setattr(dry, "environment", lambda env: {**_filtered(env), "PYTHONPATH": str(tmp_path / "stub")})


_filtered = dry.environment


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("fault", ["abort", "babble"])
async def test_child_that_dies_or_babbles_loses_one_answer(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    told = await collect(Path("/a"), Path(f"/{fault}"), Path("/b"))

    assert told[fault] == (None,)
    assert told["a"][0] is not None
    assert told["b"][0] is not None
    assert f"dry_load_failed file={fault}" in caplog.text


@pytest.mark.usefixtures("stub")
async def test_child_that_hangs_is_killed_and_the_rest_is_asked_elsewhere() -> None:
    async with asyncio.timeout(20):
        told = await collect(Path("/hang"), Path("/b"), within_s=0.5)
    assert told["hang"] == (None,)
    assert told["b"][0] is not None


@pytest.mark.usefixtures("stub")
async def test_child_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECARD_API_KEY", "sk-very-secret")
    assert "ONECARD_API_KEY" in os.environ
    (sizes,) = (await collect(Path("/secret")))["secret"]
    assert sizes is not None
    assert sizes.compute == {"CPU": 0}
