"""`[models.NAME.adapters]`: names, paths, references, and what is told where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo import GGUF_PATH, HF_PATH
from server.cli.completing import model_names
from server.cli.finding import owners
from server.memory.files import key_of, look
from server.settings.catalog import Catalog
from server.settings.config import Settings
from server.settings.config_source import ConfigError, load_settings
from tests.models import lora


def settings_of(**models: Any) -> Settings:
    return Settings.model_validate({"models": models})


def test_paths_start_where_they_are_written_and_names_are_the_models_and_its_aliases(tmp_path: Path) -> None:
    file = tmp_path / "onecard.toml"
    file.write_text(
        f'[models.chat]\npath = "{HF_PATH}"\naliases = ["gpt-4o"]\n[models.chat.adapters]\npirate = "taught/pirate"\n'
    )
    (tmp_path / "taught" / "pirate").mkdir(parents=True)
    settings = load_settings(file).settings
    catalog = Catalog(settings)

    (entry,) = catalog.entries
    assert json.loads(str(entry.options["adapters"])) == {"pirate": str(tmp_path / "taught" / "pirate")}
    assert catalog.names == ["chat", "chat:pirate"]
    assert catalog.find("gpt-4o:pirate") == (entry, "pirate")
    assert catalog.find("chat") == (entry, "")
    assert catalog.find("chat:other") == catalog.find("other:pirate") == catalog.find(":pirate") == (None, "")
    assert owners(settings) == dict.fromkeys(["chat", "chat:pirate", "gpt-4o", "gpt-4o:pirate"], "chat")


def test_a_reference_is_the_folder_of_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    models = {"chat": {"path": str(HF_PATH), "adapters": {"pirate": "hf:org/pirate"}}}
    (before,) = Catalog(settings_of(**models)).entries
    assert "hint: `hf download org/pirate`" in (look(before).header.adapters[0].problem or "")

    repo = tmp_path / "models--org--pirate"
    lora.build_folder(repo / "snapshots" / "abc", 1, targets=("v_proj",))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")

    (entry,) = Catalog(settings_of(**models)).entries
    (adapter,) = look(entry).header.adapters
    assert (adapter.problem, adapter.path) == (None, repo / "snapshots" / "abc")


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ({"a": {"path": "x", "adapters": {"b": "y"}}, "a:b": {"path": "x"}}, "would be 'a:b', which is another name"),
        ({"a": {"path": "x", "adapters": {"b": "y"}, "aliases": ["a:b"]}}, "would be 'a:b', which is another name"),
        ({"a": {"path": "x", "adapters": {"b:c": "y"}}}, "an adapter's name has letters"),
        ({"a": {"path": "x", "adapters": {"": "y"}}}, "an adapter's name has letters"),
        ({"a": {"path": "x", "adapters": {"b": ""}}}, "at least 1 character"),
        ({"a": {"path": "x", "adapters": ["b"]}}, "adapters"),
        ({"a": {"path": "x", "adapters": {f"a{n}": "y" for n in range(65)}}}, "at most 64"),
    ],
)
def test_what_cannot_be_is_refused_with_the_name(models: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_settings(flags={"models": models})


def test_another_file_is_another_adapter(tmp_path: Path) -> None:
    folder = lora.build_folder(tmp_path / "a", 1, targets=("q_proj",))
    for base, path in ((HF_PATH, folder), (GGUF_PATH, lora.as_gguf(folder, tmp_path / "a.gguf"))):
        (entry,) = Catalog(settings_of(chat={"path": str(base), "adapters": {"a": str(path)}})).entries
        before = key_of(entry)
        assert look(entry).header.adapters[0].n_targets == 4

        changed = lora.build_folder(tmp_path / f"{base.name}-2", 2, targets=("q_proj", "v_proj"))
        if path.is_dir():
            for file in changed.iterdir():
                file.replace(path / file.name)
        else:
            lora.as_gguf(changed, path)

        assert key_of(entry) != before
        assert look(entry).header.adapters[0].n_targets == 8


def test_a_shell_completes_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "onecard.toml"
    file.write_text('[models.chat]\npath = "x"\n[models.chat.adapters]\npirate = "y"\n')
    monkeypatch.setenv("ONECARD_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("_ONECARD_COMPLETE", raising=False)

    class Asked:
        params = {"config": str(file)}  # noqa: RUF012

    asked: Any = Asked()
    assert model_names(asked, "chat:") == ["chat:pirate"]
