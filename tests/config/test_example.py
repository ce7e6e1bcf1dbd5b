"""The example that `onecard config init` writes is true: it loads, and shows every default as it is."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

from server.config import Settings
from server.config_source import load_settings

EXAMPLE = Path(str(files("server") / "onecard.example.toml"))


def test_the_example_loads_without_a_warning():
    loaded = load_settings(EXAMPLE)
    assert loaded.warnings == []
    assert loaded.settings.models["demo"].aliases == ["gpt-4o-mini"]


def test_the_example_shows_the_defaults():
    shown = Settings.model_validate({**tomllib.loads(EXAMPLE.read_text()), "models": {}})
    assert shown == Settings()


def test_the_example_shows_every_key_that_has_an_effect():
    text = EXAMPLE.read_text()
    sections = [name for name in Settings.model_fields if name != "models"]
    for section in sections:
        for key in Settings.model_fields[section].annotation.model_fields:
            assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), f"{section}.{key}"


def test_the_link_at_the_top_is_the_example():
    assert (Path(__file__).parents[2] / "onecard.example.toml").resolve() == EXAMPLE.resolve()
