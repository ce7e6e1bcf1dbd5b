"""Models of `models_dirs` that the configuration names and that have gone: the server starts, tells, and waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import FAKE, Onecard, clean_environment
from tests.cli.test_reload import Live, path_of
from tests.e2e.server import serving, until

GONE = "scheduler.preload names 'gone', which is no model now; it is loaded once it is found or fetched"
NO_DRAFT = "model 'a': speculation = 'model:draft' names no model now; it drafts once it is found or fetched"


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """Its configuration: a folder of which a model to preload and a draft model were deleted."""
    (tmp_path / "models").mkdir()
    path_of(tmp_path / "models", "there")
    made = Live(None, tmp_path / "onecard.toml")  # type: ignore[arg-type]
    made.write(
        {"a": {"path": path_of(tmp_path, "a"), "speculation": "model:draft"}},
        server={"models_dirs": [str(tmp_path / "models")]},
        scheduler={"preload": ["gone", "there"], "template_process": False},
    )
    return made


def test_a_model_to_preload_that_was_deleted_stops_neither_the_server_nor_the_others(live: Live, tmp_path: Path):
    flags = ("--config", str(live.file), "--watch", "--log-format", "json")
    with serving(tmp_path, models={}, flags=flags, env={**clean_environment(tmp_path), **FAKE}) as live.server:
        until(lambda: (live.model("there") or {})["state"] == "ready", within_s=20, what="the other is preloaded")

        assert live.server.get("/v1/status")["unknown_names"] == [GONE, NO_DRAFT]
        assert {f"note: {GONE}", f"note: {NO_DRAFT}"} <= {one["text"] for one in live.told("note")}
        assert f"warning: {GONE}" in " ".join(live.command("ps").stdout.split())
        assert live.ask("a") == "echo: hello"

        path_of(tmp_path / "models", "gone")
        until(lambda: (live.model("gone") or {"state": ""})["state"] == "ready", within_s=20, what="it is preloaded")
        assert live.server.get("/v1/status")["unknown_names"] == [NO_DRAFT]
        (tmp_path / "models" / "there.gguf").unlink()
        until(lambda: "there" not in live.names(), within_s=20, what="a deleted one goes from a server that runs")
        assert "'there'" in live.server.get("/v1/status")["unknown_names"][0]
        assert live.server.stop() == 0


def test_doctor_and_check_name_it_and_a_flag_that_names_no_model_is_a_mistake(live: Live, onecard: Onecard):
    file = str(live.file)
    seen = " ".join(onecard("doctor", "--config", file).stdout.split())
    assert GONE in seen
    assert NO_DRAFT in seen
    checked = onecard("config", "check", "--config", file)
    assert (checked.returncode, f"warning: {GONE}" in checked.stderr) == (0, True), checked.stderr
    assert "models: a, there" in checked.stdout
    refused = onecard("serve", "--config", file, "--preload", "typo")
    assert (refused.returncode, "--preload typo: there is no such model" in refused.stderr) == (2, True)
