"""`onecard fit` of models that draw, for a card of 12 GiB that is not here, over files of which only headers exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.draw import sparse
from tests.models import sparse as texts
from tests.models.shapes import Shape

pytest.importorskip("diffusers", reason="the extra `images` brings diffusers")
CARD = ("--device", "cuda", "--budget", "12GiB", "--host-budget", "24GiB")
GIB = 2**30
FLUX_IN_4_BITS_GIB = ((11.9e9 + 3.6e9) * 0.516 + (1.14e9 + 0.21e9) * 2) / GIB
"""Of the transformer and of T5 without its `wo` and embedding in 4 bits; these, CLIP and the autoencoder in 16."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In the sizes that their publishers use, and a chat of 7B."""
    folder = tmp_path_factory.mktemp("sparse")
    shape = Shape("llama", 32, 4096, 32, 8, 128, 14_336, n_vocab=32_768)
    return {
        "sdxl": sparse.build(folder / "sdxl", "StableDiffusionXLPipeline", sparse.SDXL),
        "sd3": sparse.build(folder / "sd3", "StableDiffusion3Pipeline", sparse.SD3_MEDIUM),
        "flux": sparse.build(folder / "flux", "FluxPipeline", sparse.FLUX_DEV),
        "chat": texts.build(folder / "chat.gguf", shape),
    }


def told_packed(onecard, folder):
    """What is said of a folder in 4 bits, and of a number of bits that there is not."""
    config = folder.parent / "onecard.toml"
    config.write_text(f'[models.packed]\npath = "{folder}"\nquantization = "bnb-3bit"\n')
    refused = onecard("fit", "packed", "--config", str(config), *CARD, "--json")
    assert refused.returncode != 0
    assert "quantization" in refused.stderr
    assert "'bnb-4bit', 'bnb-8bit' or 'none'" in refused.stderr
    config.write_text(config.read_text().replace("3bit", "4bit"))
    return json.loads(onecard("fit", "packed", "--config", str(config), *CARD, "--json").stdout)


def test_what_is_configured_in_vain_is_told(onecard, environment, models):
    """Given keys that only a card makes something of, and a machine without one, then `fit` says so; of a card not."""
    environment["ONECARD_SERVER__PORT"] = "1"  # no server answers
    config = models["sdxl"].parent / "vain.toml"
    tables = {"artist": ("sdxl", 'image_offload = "text"'), "talker": ("chat", 'kv_offload = "host"')}
    config.write_text(
        "".join(f'[models.{name}]\npath = "{models[path]}"\n{key}\n' for name, (path, key) in tables.items())
    )
    memory = ("--config", str(config), "--budget", "64GiB")
    for name, (_, key) in tables.items():
        told = json.loads(onecard("fit", name, *memory, "--device", "cpu", "--json").stdout)["notes"]
        assert [note.partition(":")[0] for note in told] == [f"{key} has no effect without a card"]
        assert json.loads(onecard("fit", name, *memory, "--device", "cuda", "--json").stdout)["notes"] == []
    assert 'note: image_offload = "text"' in onecard("fit", "artist", *memory, "--device", "cpu").stdout


def test_who_fits_into_12_gib(onecard, environment, models):
    """Given real shapes, then weights are those of the published parameters, and the answer is the sums'."""
    environment["ONECARD_SERVER__PORT"] = "1"  # no server answers
    told = {}
    for name in ("sdxl", "sd3", "flux"):
        done = onecard("fit", str(models[name]), *CARD, "--json")
        told[name] = json.loads(done.stdout)
        assert (done.returncode, told[name]["fits"]) == ((3, False) if name == "flux" else (0, True))
    weights = {
        name: sum(one[side]["parts"]["weights"] for side in ("device", "host")) / GIB for name, one in told.items()
    }
    assert weights == {"sdxl": pytest.approx(6.6, abs=0.1), "sd3": pytest.approx(14.4, abs=0.1),
                       "flux": pytest.approx(31.4, abs=0.1)}  # fmt: skip
    assert told["sdxl"]["plan"]["further"]["image_offload"] == "none"
    assert told["sd3"]["plan"]["further"]["image_offload"] == "all"
    packed = told_packed(onecard, models["flux"])
    assert packed["plan"]["further"]["precision"] == "bfloat16, linear layers in 4 bits (nf4)"
    assert told["sd3"]["plan"]["further"]["precision"] == "bfloat16"
    in_bytes = sum(packed[side]["parts"]["weights"] for side in ("device", "host"))
    assert in_bytes / GIB == pytest.approx(FLUX_IN_4_BITS_GIB, abs=0.1)
    assert (packed["fits"], packed["plan"]["further"]["image_offload"]) == (True, "text")
    done = onecard("fit", str(models["sdxl"]), "--with", str(models["chat"]), *CARD, "--json")
    assert json.loads(done.stdout)["would_evict"] == ["chat"]
    told_people = onecard("fit", str(models["sdxl"]), "--with", str(models["chat"]), *CARD).stdout
    assert told_people.startswith("sdxl fits in place of chat: ")
