"""What a model can do is told alike before its first load, while it is loaded, and afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from backends.registry import BACKENDS
from demo import GGUF_PATH, HF_PATH
from tests.e2e.server import serving
from tests.embeddings.models import minilm, reranker

OPENAI = ("completion", "chat", "tools")


def told(url: str, name: str) -> tuple[list[str], bool, bool]:
    listed = {item["id"]: item for item in httpx2.get(f"{url}/v1/models").json()["data"]}
    single = httpx2.get(f"{url}/v1/models/{name}").json()
    assert single["capabilities"] == listed[name]["capabilities"]
    props: dict[str, Any] = httpx2.get(f"{url}/props", params={"model": name}).json()
    return single["capabilities"], props["chat_template_caps"]["supports_tools"], props["is_sleeping"]


def test_the_same_answer_before_during_and_after_a_load(demo_model: Path, canary_model: Path, tmp_path: Path):
    models = {"demo": demo_model, "canary": canary_model}
    with serving(tmp_path, models=models) as server:
        for name in models:
            can, tools, sleeping = told(server.url, name)
            assert set(OPENAI) <= set(can), "before the first load"
            assert (tools, sleeping) == (True, True)
            assert httpx2.post(f"{server.url}/v1/models/{name}/load", json={}, timeout=60).status_code == 200
            assert told(server.url, name) == (can, True, False)
            assert httpx2.post(f"{server.url}/v1/models/{name}/unload", json={}, timeout=60).status_code == 200
            assert told(server.url, name) == (can, True, True)


def test_encoders_tell_theirs(tmp_path: Path):
    for path, kind in ((minilm(), "embedding"), (reranker(tmp_path / "r", n_types=2), "rerank")):
        assert BACKENDS["bnb"].describe(path, {}).capabilities == [kind]


def folder(tmp_path: Path, **files: str | None) -> list[str]:
    """The capabilities of the demo's folder with other files."""
    place = tmp_path / "model"
    shutil.copytree(HF_PATH, place)
    for name, text in files.items():
        path = place / name.replace("__", "/").replace("_DOT_", ".")
        path.unlink(missing_ok=True)
        if text is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return list(BACKENDS["bnb"].describe(place, {}).capabilities)


THINKS = "{% if enable_thinking %}<think>{% endif %}{{ messages }}"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, ["completion"]),
        ({"chat_template": "{{ messages }}"}, {}, [*OPENAI]),
        ({"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": THINKS}]}, {},
         [*OPENAI, "thinking"]),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, {}, ["completion"]),
        ({"chat_template": 7}, {}, ["completion"]),
        ({"chat_template": "x"}, {"chat_template_DOT_jinja": THINKS}, [*OPENAI, "thinking"]),
        ({}, {"additional_chat_templates__tool_use_DOT_jinja": "x"}, [*OPENAI]),
    ],
)  # fmt: skip
def test_folders_tell_their_templates_wherever_they_lie(config, files, expected, tmp_path):
    given = json.loads((HF_PATH / "tokenizer_config.json").read_text())
    given.pop("chat_template", None)
    absent: dict[str, str | None] = {"chat_template_DOT_jinja": None}
    written = {**absent, **files, "tokenizer_config_DOT_json": json.dumps({**given, **config})}
    assert [one for one in folder(tmp_path, **written) if one != "infill"] == expected


def test_both_kinds_of_the_demo_tell_the_same():
    assert BACKENDS["gguf"].describe(GGUF_PATH, {}).capabilities == BACKENDS["bnb"].describe(HF_PATH, {}).capabilities
