"""The example that `onecard config init` writes is true: it loads, and shows every default as it is."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

from server.settings.config import Settings
from server.settings.config_source import load_settings

EXAMPLE = Path(str(files("server") / "onecard.example.toml"))


def test_the_example_loads_without_a_warning():
    loaded = load_settings(EXAMPLE)
    assert list(loaded.settings.models) == ["smollm2", "demo"]
    assert loaded.settings.models["smollm2"].aliases == ["gpt-4o-mini"]


def test_the_example_shows_the_defaults():
    shown = Settings.model_validate({**tomllib.loads(EXAMPLE.read_text()), "models": {}})
    assert shown == Settings()


def test_the_example_shows_every_key_of_the_schema():
    text = re.sub(r"^# (?=\[|\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    shown = tomllib.loads(text)
    schema = Settings.model_json_schema()
    tables = {name: field["$ref"].rsplit("/", 1)[1] for name, field in schema["properties"].items() if "$ref" in field}
    assert set(shown) == set(schema["properties"]) == {*tables, "models", "keys"}
    for section, kind in tables.items():
        assert set(shown[section]) == set(schema["$defs"][kind]["properties"]), section
    assert set(shown["keys"]["anna"]) == set(schema["$defs"]["KeyConfig"]["properties"])
    assert set(shown["models"]["chat"]) == set(schema["$defs"]["ModelConfig"]["properties"])
    Settings.model_validate(shown)


def test_the_link_at_the_top_is_the_example():
    assert (Path(__file__).parents[2] / "onecard.example.toml").resolve() == EXAMPLE.resolve()
