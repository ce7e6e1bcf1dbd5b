"""`[defaults]`: what every model has that does not say otherwise, and for `sampling` each field on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.settings.changes import differing_keys
from server.settings.config_source import load_settings
from server.settings.sampling import plain_sampling, sampling_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_sampling_of_the_defaults_is_over_models_files_and_under_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONECARD_DEFAULTS__SAMPLING__TOP_K", "7")
    file = tmp_path / "onecard.toml"
    file.write_text(
        "[defaults]\nsampling = { temperature = 0.7, top_p = 0.9 }\n"
        '[models.own]\npath = "smollm2"\nsampling = { top_p = 0.5 }\n[models.none]\npath = "smollm2"\n'
    )
    models = load_settings(file).settings.models

    assert plain_sampling(models["own"], None) == {"temperature": 0.7, "top_p": 0.5, "top_k": 7}
    assert plain_sampling(models["none"], None) == {"temperature": 0.7, "top_p": 0.9, "top_k": 7}
    assert sampling_of(models["none"], None)["top_p"] == (0.9, "config")
    assert differing_keys(models["own"], models["none"].model_copy(update={"name": "own"})) == ["sampling"]
