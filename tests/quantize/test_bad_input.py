"""What cannot be made is a sentence and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantize.errors import QuantizeError
from tests.models.test_odd_files import FOLDERS
from tests.quantize.conftest import GGUF, HF, make
from tests.quantize.zoo import build

pytestmark = pytest.mark.engine


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def change(folder: Path, name: str, value: object, *, dtype: str | None = None) -> None:
    """Put one value into one tensor, or give it another type."""
    tensors = load_file(folder / "model.safetensors")
    array = tensors[name].copy()
    if dtype is not None:
        array = array.astype(dtype)
    else:
        array.reshape(-1)[5] = value
    save_file(tensors | {name: array}, folder / "model.safetensors", metadata={"format": "pt"})


def refused(sentence: str, source: Path, out: Path, *types: str, **more: object) -> QuantizeError:
    before = names(out) if out.is_dir() else set()
    with pytest.raises(QuantizeError, match=sentence) as caught:
        make(source, out, *types, **more)
    assert (names(out) if out.is_dir() else set()) == before
    return caught.value


TEXTS = [name for name in FOLDERS if any(word in name for word in ("UTF", "Latin-1", "byte order mark"))]
WEIGHTS = ["pointer", "page", "no bytes", "zeros"]


@pytest.mark.parametrize("case", [*TEXTS, *WEIGHTS])
def test_files_that_are_no_text_or_no_weights_are_named_as_serving_names_them(
    folder: Path, tmp_path: Path, case: str
) -> None:
    spoil, sentence = FOLDERS[case]
    spoil(folder)
    refused(sentence, folder, tmp_path / "out", "F16")


def test_nan_weight_is_named_and_refused_unless_told(folder: Path, tmp_path: Path) -> None:
    change(folder, "model.layers.1.mlp.up_proj.weight", np.nan)
    sentence = r"tensor 'blk.1.ffn_up.weight' holds numbers that are none \(1 NaN, 0 infinite"
    refused(sentence, folder, tmp_path / "out", "F16")
    refused("--allow-nan", folder, tmp_path / "out", "F32")
    assert make(folder, tmp_path / "out", "F16", allow_nan=True).written[0].is_file()


@pytest.mark.parametrize("type_name", ["F16", "BF16", "F32"])
def test_infinite_weight_is_refused_in_every_type(folder: Path, tmp_path: Path, type_name: str) -> None:
    change(folder, "model.layers.0.mlp.down_proj.weight", np.inf)
    refused("0 NaN, 1 infinite", folder, tmp_path / "out", type_name)


def test_nan_is_refused_for_bitsandbytes_too(folder: Path, tmp_path: Path) -> None:
    change(folder, "model.layers.0.mlp.down_proj.weight", np.nan)
    refused("down_proj.*1 NaN", folder, tmp_path / "out", "bnb-4bit")


def test_weight_too_large_for_f16_is_named_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    change(folder, "model.layers.0.mlp.down_proj.weight", 1e5)
    refused(r"holds 1e\+05, more than F16 can \(65504\). hint: --to BF16 or F32", folder, tmp_path / "out", "F16")
    assert make(folder, tmp_path / "out", "BF16").written


def test_wrong_number_type_is_named(folder: Path, tmp_path: Path) -> None:
    change(folder, "model.layers.0.mlp.down_proj.weight", 0, dtype="int8")
    refused("is of type I8; F64, F32, F16, BF16 are converted", folder, tmp_path / "out", "F16")


def test_missing_layer_is_named(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused("layer 2 of 3 has no ffn_down.weight", folder, tmp_path / "out", "F16")


def test_unknown_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.thing"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused("'extra.thing' has no place in a GGUF file of llama", folder, tmp_path / "out", "F16")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("architectures", ["MambaForCausalLM"], "not one of those converted here .* --converter PATH"),
        ("architectures", [], "names no architecture"),
        ("num_hidden_layers", -1, "num_hidden_layers in config.json is '-1'"),
        ("num_attention_heads", "four", "not a whole number"),
        ("hidden_act", "relu", "hidden_act is 'relu' .* computes only silu"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4}, "rope scaling 'dynamic' is not known"),
        ("quantization_config", {"quant_method": "gptq"}, "already quantised"),
    ],
)
def test_config_that_llama_cpp_would_compute_otherwise_is_refused(
    folder: Path, tmp_path: Path, key: str, value: object, sentence: str
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refused(sentence, folder, tmp_path / "out", "F16")


def test_tokenizer_larger_than_the_embedding_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused("the embedding matrix 100 rows", folder, tmp_path / "out", "F16")


def test_output_that_exists_is_refused_without_force_and_kept_when_the_work_fails(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small-F16.gguf"
    target.write_bytes(b"precious")
    assert refused("exists. hint: --force replaces it", folder, tmp_path, "F16").usage
    change(folder, "model.layers.2.mlp.down_proj.weight", np.nan)
    refused("NaN", folder, tmp_path, "F16", force=True)
    assert target.read_bytes() == b"precious"


def test_source_as_output_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    shutil.copyfile(GGUF, source)
    assert refused("is the source itself", source, source, "Q8_0", force=True).usage
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    refused("is the source itself", source, link, "Q8_0", force=True)


def test_gguf_is_no_source_for_bitsandbytes(tmp_path: Path) -> None:
    assert refused("bitsandbytes quantises Hugging Face folders", GGUF, tmp_path / "out", "bnb-4bit").usage


def test_cut_gguf_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "cut.gguf"
    source.write_bytes(GGUF.read_bytes()[:100_000])
    refused("it is cut or wrong", source, tmp_path / "out", "Q8_0")


def test_too_little_disk_is_said_before_the_work(folder: Path, tmp_path: Path) -> None:
    from quantize.files import check_space

    with pytest.raises(QuantizeError, match=r"the outputs need 4.0e\+06 GiB|the outputs need \d+ GiB, .* are free"):
        check_space(tmp_path, 2**52)


def test_types_that_are_noise_without_a_matrix_are_refused_with_the_hint(tmp_path: Path) -> None:
    for type_name in ("IQ2_XXS", "IQ1_S", "Q2_K_S"):
        sentence = "noise without an importance matrix. hint: --calibrate TEXT"
        assert refused(sentence, GGUF, tmp_path / "out", type_name).usage


def test_quantised_source_is_refused_unless_told(tmp_path: Path) -> None:
    (source,) = make(GGUF, tmp_path, "Q4_0").written
    assert refused("quantised already .*Q4_0", source, tmp_path / "out", "Q8_0").usage
    assert make(source, tmp_path / "out", "Q8_0", requantize=True).written


def test_several_outputs_in_one_file_are_refused(tmp_path: Path) -> None:
    assert refused("there is more to write", GGUF, tmp_path / "x.gguf", "Q8_0", "Q4_0").usage


def test_imatrix_of_another_model_is_refused(tmp_path: Path) -> None:
    from quantize import imatrix

    wrong = {"blk.0.attn_q.weight": "has 192 columns, the matrix 7", "blk.9.x.weight": "names no matrix"}
    for name, sentence in wrong.items():
        sums = imatrix.Sums(np.ones((1, 7), np.float32), np.ones(1, np.float32))
        imatrix.write(imatrix.Imatrix({name: sums}, ("t",), 1, 512), tmp_path / "i.gguf")
        refused(sentence, GGUF, tmp_path / "out", "Q4_0", imatrix=tmp_path / "i.gguf")
    refused("no importance matrix", GGUF, tmp_path / "out", "Q4_0", imatrix=GGUF)


def test_short_text_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("short")
    assert refused("has 5 characters; at least 2000", GGUF, tmp_path / "out", "Q4_0", calibrate=text).usage


def test_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    refused("matches no tensor", GGUF, tmp_path / "out", "Q4_0", overrides=(("nothing", "Q8_0"),))
    refused("no regular expression", GGUF, tmp_path / "out", "Q4_0", overrides=(("(", "Q8_0"),))
    refused("no tensor type; the nearest is Q8_0", GGUF, tmp_path / "out", "Q4_0", overrides=(("ffn", "Q80"),))


def test_nothing_fits_is_told_with_the_sums(tmp_path: Path) -> None:
    sentence = r"does not fit 1 MiB at context 2048: even .* needs \d+ MiB"
    assert refused(sentence, HF, tmp_path / "out", fit_bytes=2**20, context=2048).does_not_fit


def test_report_of_an_encoder_is_refused_before_the_work(tmp_path: Path) -> None:
    refused("an encoder predicts no text", build("bert", tmp_path / "bert"), tmp_path / "out", "Q8_0", report=True)


def test_folder_that_only_bitsandbytes_knows_is_still_quantised(folder: Path, tmp_path: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "gelu"}))
    refused("hidden_act is 'gelu'", folder, tmp_path / "out", "Q8_0")
    assert make(folder, tmp_path / "out", "bnb-8bit").written[0].is_dir()
