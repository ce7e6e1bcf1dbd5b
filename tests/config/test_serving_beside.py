"""Models that the server was told to serve beside the configuration's, and that they alone are taken away again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from demo import GGUF_PATH
from server.reload import Reading, Reloader
from server.settings.catalog import Catalog
from server.settings.config import Settings

NAME = "ft:demo:night:1"
"""As a fine-tuning job names a whole model."""


def reloader_of(catalog: Catalog, settings: Settings, wanted: Settings) -> Reloader:
    """One whose configuration is `wanted` when it is read again."""
    silent: Any = SimpleNamespace(change=lambda *_: None, tell=lambda *_, **__: None, draining=False)
    return Reloader(
        settings,
        lambda: Reading(wanted),
        catalog=catalog,
        pool=silent,
        door=silent,
        adopt=lambda _: None,
    )


@pytest.mark.parametrize("key", [NAME, "night"])
async def test_a_configured_model_of_the_same_name_stays(key):
    """Given a model of a job whose name the configuration has taken, when the job's is deleted, then that one stays."""
    model = {"path": str(GGUF_PATH), "aliases": [] if key == NAME else [NAME]}
    settings = Settings.model_validate({"models": {key: model}})
    catalog = Catalog(settings)
    reloader = reloader_of(catalog, settings, settings)
    await reloader.serve_too(NAME, str(GGUF_PATH))

    await reloader.serve_no_more(NAME)

    assert catalog.names == [key]


async def test_a_model_that_was_added_is_taken_away_and_no_reload_brings_it_back():
    settings = Settings.model_validate({"models": {"demo": {"path": str(GGUF_PATH)}}})
    catalog = Catalog(settings)
    reloader = reloader_of(catalog, settings, settings)
    await reloader.serve_too(NAME, str(GGUF_PATH))
    assert catalog.names == ["demo", NAME]

    await reloader.serve_no_more(NAME)

    assert catalog.names == ["demo"]
    await reloader.reload("test")
    assert catalog.names == ["demo"]
