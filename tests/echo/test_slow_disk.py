"""On a slow disk a listing waits for the headers: no client sees a model that can do nothing."""

from __future__ import annotations

from pathlib import Path

from tests.http.conftest import Server


def test_the_first_listing_has_what_the_files_say(tmp_path: Path) -> None:
    (tmp_path / "a.echo").write_text("ECHO 100\n")
    settings = {"models": {"a": {"path": str(tmp_path / "a.echo")}}, "memory": {"device": "cpu", "budget": "140MiB"}}
    env = {"ONECARD_BACKENDS": "tests.echo.slow:SlowEchoes", "ONECARD_TEST_ENGINE": ""}
    server = Server(settings, tmp_path / "server.log", **env)

    try:
        (first,) = server.get("/v1/models").json()["data"]
        assert (first["state"], first["capabilities"]) == ("unloaded", ["echo"])
    finally:
        assert server.stop() == 0, server.log
