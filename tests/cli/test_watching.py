"""`--watch`: what changes after the configuration was read is taken over, also before the first look at its files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.app import create_app
from server.cli.serve import watched_files
from server.cli.watching import Watched, looked_at, watch
from server.reload import Reading
from server.settings.config_source import load_settings

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_S = 30.0


def _written(file: Path, *names: str) -> None:
    file.write_text("[server]\nwatch = true\n" + "".join(f'[models.{name}]\npath = "demo"\n' for name in names))


async def _names_after(file: Path, *changes: tuple[str, ...]) -> list[str]:
    """The models of a server whose file changes between its reading and the first look, and then again and again."""
    settings = load_settings(file).settings
    as_read = await asyncio.to_thread(looked_at, watched_files(settings, file))
    app = create_app(settings, read=lambda: Reading(load_settings(file).settings))
    told: asyncio.Queue[str] = asyncio.Queue()
    app.state.pool.on_change.append(lambda what, _: told.put_nowait(what) if what.startswith("config") else None)
    _written(file, *changes[0])
    watched = Watched(lambda now: watched_files(now, file), as_read)
    watching = asyncio.create_task(watch(watched, app.state.services.reloader, every_s=0.01))
    for names in changes[1:]:
        assert await asyncio.wait_for(told.get(), _LONGEST_S) == "config_reloaded"
        _written(file, *names)
    assert await asyncio.wait_for(told.get(), _LONGEST_S) == "config_reloaded"
    watching.cancel()
    return [entry.name for entry in app.state.catalog.entries]


def test_what_changes_before_the_first_look_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "onecard.toml"
    _written(file, "first")

    assert asyncio.run(_names_after(file, ("first", "second"), ("third",))) == ["third"]
