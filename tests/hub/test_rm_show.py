"""`onecard rm`, `show` and `list` over a cache that `pull` has filled."""

import json
import mmap
import os

import pytest

from demo import GGUF_PATH
from tests.cli.conftest import FAKE
from tests.e2e.server import serving
from tests.hub.conftest import CHAT


@pytest.fixture
def filled(pulled, world, tmp_path):
    world.repositories["org/two"] = {"a-F16.gguf": CHAT, "b-Q8_0.gguf": CHAT + b"\0" * 64, "config.json": b"{}"}
    for model in ("org/two:F16", "org/two:Q8_0", "org/folder"):
        done = pulled("pull", model)
        assert done.returncode == 0, done.stderr
    return pulled


def files(tmp_path):
    cache = tmp_path / "hub"
    return sorted(p.name for p in cache.glob("models--*/snapshots/*/*.*") if p.suffix in (".gguf", ".safetensors"))


def test_show_tells_what_a_model_is(filled):
    told = json.loads(filled("show", "org/two:F16", "--json").stdout)
    assert {key: told[key] for key in ("backend", "architecture", "quantisation", "gives", "fits", "from")} == {
        "backend": "gguf",
        "architecture": "llama",
        "quantisation": "F16",
        "gives": "text",
        "fits": True,
        "from": "org/two in the cache",
    }
    assert told["parameters"].endswith("M")
    assert told["estimate_bytes"] > told["size_bytes"] == len(CHAT)
    assert "tools" in told["capabilities"]
    folder = filled("show", "org/folder").stdout
    assert "architecture" in folder
    assert "org/folder in the cache" in folder
    assert json.loads(filled("show", "demo", "--json").stdout)["from"] == "built in"


def test_rm_takes_one_quantisation_and_then_the_rest(filled, tmp_path):
    asked = filled("rm", "org/two:F16")
    assert (asked.returncode, "nothing was removed" in asked.stderr) == (1, True)
    assert filled("rm", "org/two:F16", "--yes").returncode == 0
    assert files(tmp_path) == ["b-Q8_0.gguf", "model.safetensors"]
    assert filled("rm", "hf:org/two:Q8_0", "-y").returncode == 0
    assert filled("rm", "org/folder", "-y").returncode == 0
    assert files(tmp_path) == []
    assert list((tmp_path / "hub").glob("models--*/blobs/*")) == []
    assert json.loads(filled("list", "--json").stdout)["cache"] == []


def test_rm_touches_nothing_outside_the_cache(filled, tmp_path):
    outside = tmp_path / "mine.gguf"
    outside.write_bytes(CHAT)
    beside = tmp_path / "hub" / "models--org--two" / ".." / ".." / "mine.gguf"
    for path in (outside, beside, GGUF_PATH, "demo", "smollm2"):
        done = filled("rm", str(path), "--yes")
        why = "built in, and stays" if isinstance(path, str) else "lies outside the cache"
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert outside.read_bytes() == CHAT
    assert filled("rm", "org/absent", "--yes").returncode == 2


def test_rm_refuses_what_is_in_use(filled, tmp_path):
    (snapshot,) = (tmp_path / "hub").glob("models--org--two/snapshots/*")
    with (snapshot / "a-F16.gguf").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        done = filled("rm", "org/two:F16", "--yes")
    assert (done.returncode, f"process {os.getpid()} has the files" in done.stderr) == (1, True)
    with serving(tmp_path, models={"org/two:F16": str(snapshot / "a-F16.gguf")}, env=FAKE) as server:
        url = {"ONECARD_URL": server.url}
        assert filled("load", "org/two:F16", env=url).returncode == 0
        done = filled("rm", "org/two:F16", "--yes", env=url)
        assert "a running server has org/two:F16 loaded. hint: onecard unload" in done.stderr
        assert filled("unload", "org/two:F16", env=url).returncode == 0
        assert filled("rm", "org/two:F16", "--yes", env=url).returncode == 0
