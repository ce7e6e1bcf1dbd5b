"""Models that other programs have: an Ollama store, whole and broken, and folders of files."""

import json
import os

from backends.registry import BACKENDS
from demo import GGUF_PATH
from demo.vision import GGUF_PATH as VISION_PATH
from demo.vision import PROJECTOR_PATH
from server.settings.catalog import Catalog
from server.settings.config import Settings
from server.settings.discovery import discover, usual_places, with_discovered
from tests.present import present

SIZE = GGUF_PATH.stat().st_size


def digest(n):
    return f"{n:064x}"


def ollama(store, name, layers):
    manifest = store / "manifests" / "registry.ollama.ai" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (store / "blobs").mkdir(exist_ok=True)
    kinds = [{"mediaType": f"application/vnd.ollama.image.{kind}", **layer} for kind, layer in layers.items()]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": kinds}))


def blob(store, n, content):
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest(n)}").write_bytes(content)
    return {"digest": f"sha256:{digest(n)}", "size": len(content)}


def test_ollamas_store_is_served_from_where_it_lies(tmp_path, monkeypatch):
    weights = blob(tmp_path, 1, GGUF_PATH.read_bytes())
    params = blob(tmp_path, 2, b'{"temperature": 0.5, "num_ctx": 512, "stop": ["x"]}')
    others = {"template": blob(tmp_path, 3, b"{{"), "system": blob(tmp_path, 4, b"Be kind.")}
    ollama(tmp_path, "library/toy/latest", {"model": weights, "params": params, **others})
    ollama(tmp_path, "me/toy/q4", {"model": weights})
    ollama(tmp_path, "library/gone/1", {"model": {"digest": f"sha256:{digest(9)}", "size": 5}})
    (tmp_path / "blobs" / f"sha256-{digest(9)}-partial").write_bytes(b"x")
    ollama(tmp_path, "library/cut/1", {"model": {**weights, "size": SIZE + 1}})
    ollama(tmp_path, "library/away/1", {"model": {"digest": "sha256:../../../etc/passwd", "size": 5}})
    ollama(tmp_path, "library/empty/1", {})
    (tmp_path / "manifests" / "registry.ollama.ai" / "library" / "empty" / "2").write_bytes(b'{"layers": [')
    found = discover([str(tmp_path)])
    assert [(m.name, m.path.name, m.source) for m in found.models] == [
        ("toy:latest", f"sha256-{digest(1)}", "Ollama"),
        ("me/toy:q4", f"sha256-{digest(1)}", "Ollama"),
    ]
    told = "\n".join(found.problems)
    assert len(found.problems) == 5
    assert "gone:1 is left out: the blob sha256-000000000000 is not there, only a part of it" in told
    assert f"cut:1 is left out: the blob sha256-000000000000 has {SIZE} of {SIZE + 1} bytes" in told
    assert "empty:2 is left out: 2 is not JSON" in told
    settings = with_discovered(Settings.model_validate({"models": {"me/toy:q4": {"path": "demo"}}}), found)
    assert settings.models["me/toy:q4"].path == "demo"
    model = settings.models["toy:latest"]
    assert (model.context, present(model.sampling).temperature, model.parallel) == (512, 0.5, 2)
    assert model.system == "Be kind."
    entry = present(Catalog(settings).resolve("toy:latest"))
    assert (entry.missing, entry.backend, entry.size_bytes) == (None, "gguf", SIZE)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert str(tmp_path) in usual_places()


def test_a_model_of_ollamas_store_has_its_own_eyes(tmp_path):
    weights, eyes = blob(tmp_path, 1, VISION_PATH.read_bytes()), blob(tmp_path, 2, PROJECTOR_PATH.read_bytes())
    ollama(tmp_path, "library/seer/latest", {"model": weights, "projector": eyes})
    ollama(tmp_path, "library/cut/latest", {"model": weights, "projector": {**eyes, "size": 5}})
    found = discover([str(tmp_path)])
    assert [(model.name, model.remarks) for model in found.models] == [("seer:latest", ())]
    assert "cut:latest is left out: the blob sha256-000000000000 has" in found.problems[0]
    config = with_discovered(Settings(), found).models["seer:latest"]
    header = BACKENDS["gguf"].describe(found.models[0].path, config.options_of("gguf"))
    assert "vision" in header.capabilities


def test_a_folder_of_files_as_lm_studio_keeps_them(tmp_path):
    folder = tmp_path / "models" / "org" / "repo"
    folder.mkdir(parents=True)
    for name in ("a-Q4_K_M.gguf", "mmproj-a.gguf", "half-00001-of-00002.gguf"):
        os.link(GGUF_PATH, folder / name) if GGUF_PATH.stat().st_dev == folder.stat().st_dev else (
            folder / name
        ).symlink_to(GGUF_PATH)
    (folder / "hf").symlink_to(GGUF_PATH.parent / "hf")
    (tmp_path / "models" / "tiny").mkdir()
    for file in (GGUF_PATH.parent / "hf").iterdir():
        (tmp_path / "models" / "tiny" / file.name).symlink_to(file)
    found = discover([str(tmp_path / "models"), str(tmp_path / "absent")])
    assert sorted(model.name for model in found.models) == ["models/tiny", "org/repo/a-Q4_K_M"]
    assert len(found.problems) == 2
    assert all(entry.missing is None for entry in Catalog(with_discovered(Settings(), found)).entries)
