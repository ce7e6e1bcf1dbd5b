"""A page that stays open: two people at once, a configuration that is refused, a server that goes and comes, a day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import FAKE, clean_environment
from tests.e2e.server import serving
from tests.http.conftest import Server, settings
from tests.page.browser import Tab, another
from tests.page.test_page import in_browser, opened

pytestmark = in_browser
N_LOOKS = 60
"""Two minutes of a page that asks every two seconds."""


@pytest.fixture(scope="module")
def slow(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model loads for longer than a person needs to see it."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copy(canary_path, folder / "slow.gguf")
    (folder / "slow.gguf.fake").write_text("slow 60")
    chosen = settings(canary_path)
    chosen["models"] = {"fake": {"path": str(folder / "slow.gguf"), "context": 4096}}
    running = Server(chosen, folder / "server.log")
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture
def two(tab: Tab, server: Server) -> Iterator[tuple[Tab, Tab]]:
    """Two people with the page of one server."""
    with another(tab) as second:
        for one in (tab, second):
            opened(one, server)
        yield tab, second


def button(verb: str) -> str:
    return f'[data-verb="{verb}"][data-model="fake"]'


def told(tab: Tab) -> str:
    """What came of the last press."""
    tab.wait("/: /.test(document.querySelector('#told').innerText)")
    return tab.text("#told")


def shows(tab: Tab, state: str) -> None:
    row = "[...document.querySelectorAll('#models tr')].find((row) => row.querySelector('[data-model=fake]'))"
    tab.wait(f"{row}?.children[1].innerText.startsWith({json.dumps(state)})")


def test_two_people_move_one_model_and_both_see_what_became_of_it(two: tuple[Tab, Tab], server: Server) -> None:
    first, second = two
    server.post("/v1/models/fake/unload", {})
    for _ in range(3):
        shows(first, "unloaded")
        shows(second, "unloaded")
        for tab in two:
            tab.evaluate("document.querySelector('#told').textContent = ''")
            tab.click(button("load"))
        assert [told(tab) for tab in two] == ["load fake: done"] * 2, "both ask for one load"
        for tab in two:
            shows(tab, "ready")
        for tab in two:
            tab.evaluate("document.querySelector('#told').textContent = ''")
        first.click(button("pin"))
        second.click(button("unload"))
        assert told(first) == "pin fake: done"
        assert told(second) == "unload fake: done"
        for tab in two:
            tab.wait(f"document.querySelector({json.dumps(button('unpin'))}) !== null")
        second.click(button("unpin"))
        for tab in two:
            tab.wait(f"document.querySelector({json.dumps(button('pin'))}) !== null")
    assert server.model()["pinned"] is False
    for tab in two:
        tab.wait("document.querySelector('#events').innerText.includes('unpinned fake, manual')")
        assert tab.said == []


def test_a_load_that_another_takes_back_is_told_to_who_waits_for_it(tab: Tab, slow: Server) -> None:
    with another(tab) as second:
        for one in (tab, second):
            opened(one, slow)
        tab.click(button("load"))
        shows(second, "loading")
        second.click(button("unload"))
        assert told(second) == "unload fake: done"
        assert told(tab).startswith("load fake: the load of 'fake' was given up: the model was unloaded meanwhile")
        for one in (tab, second):
            shows(one, "unloaded")


def test_a_refused_configuration_is_told_until_one_is_taken(tab: Tab, canary_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    good = f'[models.fake]\npath = "{canary_path}"\n[memory]\ndevice = "cpu"\nbudget = "1GiB"\n'
    file.write_text(good)
    env = {**clean_environment(tmp_path), **FAKE}
    with serving(tmp_path, models={}, flags=("--config", str(file), "--watch"), env=env) as live:
        tab.look(width=1300, height=900)
        tab.open(live.url)
        tab.wait("document.querySelectorAll('#model option').length === 1")
        file.write_text(good + "[models.fake]\n")
        tab.wait("document.querySelector('#config').innerText.includes('was not taken over')")
        assert "c.toml" in tab.text("#config")
        assert tab.evaluate("document.querySelectorAll('#model option').length") == 1
        tab.open(live.url)
        tab.wait("document.querySelector('#config').innerText !== ''")
        file.write_text(good + f'[models.more]\npath = "{canary_path}"\n')
        tab.wait("document.querySelector('#config').innerText === ''")
        tab.wait("document.querySelectorAll('#model option').length === 2")
    tab.wait("document.querySelector('#state').innerText.startsWith('no answer')")
    tab.open("about:blank")


def test_a_page_that_stays_open_does_not_grow(tab: Tab, server: Server) -> None:
    opened(tab, server)
    looks = (
        f"import('/page/status.js').then(async (its) => {{ for (let i = 0; i < {N_LOOKS}; i++) await its.look(); }})"
    )

    def worked() -> dict[str, float]:
        for _ in range(101):  # more than the page shows
            for verb in ("pin", "unpin"):
                server.post(f"/v1/models/fake/{verb}", {})
        tab.wait("document.querySelectorAll('#events li').length === 200")
        tab.evaluate(looks)
        return tab.held()

    before, after = worked(), worked()
    assert after["Nodes"] <= before["Nodes"] + 50
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 2
    assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] + 500_000
    assert tab.said == []
