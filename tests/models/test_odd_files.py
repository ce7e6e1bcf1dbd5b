"""What is no model is told at the first look, in a sentence of its own and under any name; what is only odd works."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import demo
from backends import registry
from backends.backend import HeaderError
from backends.files import foreign
from backends.messages import Generate, Sampling, TextPrompt
from server.memory.files import look
from server.settings.catalog import Catalog
from server.settings.config import Settings
from server.settings.references import LocateError, locate
from tests.models import odd_files
from tests.specs import spec_of


@pytest.mark.parametrize("name", ["sha256-0123", "model.bin", "MODEL.GGUF", "no suffix at all"])
def test_a_gguf_file_of_any_name_is_one(tmp_path: Path, name: str) -> None:
    shutil.copy(demo.GGUF_PATH, tmp_path / name)
    (entry,) = Catalog(Settings.model_validate({"models": {"m": {"path": str(tmp_path / name)}}})).entries
    assert (entry.backend, entry.missing) == ("gguf", None)
    assert registry.BACKENDS["gguf"].describe(entry.path, {}).gives == "text"


@pytest.mark.parametrize("kind", odd_files.FOREIGN)
@pytest.mark.parametrize("name", ["blob", "m.gguf"])
def test_another_file_is_named_for_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    raw, sentence = odd_files.FOREIGN[kind]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises((LocateError, HeaderError), match=sentence):
        registry.BACKENDS["gguf"].describe(locate(str(tmp_path / name)).path, {})


def test_a_remark_cannot_write_to_a_terminal() -> None:
    assert foreign.plain(["\x1b[2Jgone\n" + "x" * 999] * 99) == ("?[2Jgone?" + "x" * 391,) * 16


@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".crdownload"])
def test_a_download_under_way_is_none_yet(tmp_path: Path, suffix: str) -> None:
    shutil.copy(demo.GGUF_PATH, tmp_path / f"m.gguf{suffix}")
    with pytest.raises(LocateError, match="a download that is not finished"):
        locate(str(tmp_path / f"m.gguf{suffix}"))


def test_a_safetensors_file_names_its_folder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo.HF_PATH, tmp_path / "m"))
    with pytest.raises(LocateError, match=f"a safetensors file: .* hint: name its folder, {folder}"):
        locate(str(folder / "model.safetensors"))


@pytest.mark.parametrize("case", odd_files.UNSERVABLE)
def test_a_gguf_file_that_nothing_can_answer_with_is_told_from_its_header(tmp_path: Path, case: str) -> None:
    write, sentence = odd_files.UNSERVABLE[case]
    with pytest.raises(HeaderError, match=sentence):
        registry.BACKENDS["gguf"].describe(write(tmp_path / "m.gguf"), {})


@pytest.mark.engine
@pytest.mark.parametrize("case", odd_files.ODD_BUT_FINE)
def test_an_odd_vocabulary_is_served(tmp_path: Path, case: str) -> None:
    path = odd_files.ODD_BUT_FINE[case](tmp_path / "m.gguf")
    spec = spec_of(name="m", backend="gguf", path=str(path), context=128, parallel=1, threads=1)
    remarks = registry.BACKENDS["gguf"].describe(path, {}).remarks
    assert ("beyond" in case) == any("tokenizer.ggml.bos_token_id is 2147483648" in remark for remark in remarks)

    engine = registry.engine_of("gguf")(spec, lambda _: None)
    try:
        for prompt in (TextPrompt("hello world"), TextPrompt("x" * 60)):
            engine.add(engine.prepare(Generate(id="g", prompt=prompt, max_tokens=2, sampling=Sampling(temperature=0))))
            steps = 0
            while not engine.idle and (steps := steps + 1) < 20:
                engine.step()
            assert engine.idle
    finally:
        engine.close()


def _config(folder: Path, **more: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def _weights(name: str, raw: bytes | None = None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if raw is None:
            (folder / "model.safetensors").rename(folder / name)
        else:
            (folder / name).write_bytes(raw)

    return change


def _without_head(folder: Path, **config: object) -> None:
    """The folder with an embedding and no head, and what config.json says of it."""
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "lm_head" not in k}, file, {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(raw | config))


def _piped_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _lost_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "blobs" / "6b3f")


def _text(name: str, encoding: str, text: str = "{{ 'größe' }}") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode(encoding))

    return change


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "byte order mark": (
        lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "config.json begins with a byte order mark",
    ),
    "template in UTF-16": (_text("chat_template.jinja", "utf-16"), "chat_template.jinja begins with a byte order mark"),
    "template in UTF-16 without a mark": (
        _text("chat_template.jinja", "utf-16-le"),
        "chat_template.jinja is no UTF-8 text.* hint: save it as UTF-8",
    ),
    "ASCII template in UTF-16": (
        _text("chat_template.jinja", "utf-16-le", "{{ 1 }}"),
        "chat_template.jinja is no UTF-8 text: it holds zero bytes",
    ),
    "template in Latin-1": (_text("chat_template.jinja", "latin-1"), "jinja is no UTF-8 text: byte 6 is none. hint: "),
    "another template in Latin-1": (
        _text("additional_chat_templates/tool_use.jinja", "latin-1"),
        "tool_use.jinja is no UTF-8 text",
    ),
    "configuration in UTF-32": (_text("tokenizer_config.json", "utf-32-be", "{}"), "tokenizer_config.json is no UTF-8"),
    "merges in Latin-1": (_text("merges.txt", "cp1252", "ü ü"), "merges.txt is no UTF-8 text"),
    "no tokenizer's JSON": (_text("tokenizer.json", "utf-8", "{"), "tokenizer.json is no tokenizer"),
    "not a number": (lambda f: _config(f, rms_norm_eps=float("nan")), "rms_norm_eps = NaN, which is no number. hint: "),
    "infinity": (lambda f: _config(f, rope_theta=float("inf")), "rope_theta = Infinity, which is no number"),
    "infinity inside": (
        lambda f: _config(f, rope_parameters={"rope_type": "x", "factor": float("-inf")}),
        "factor = -Infinity, which",
    ),
    "not a number in a list": (lambda f: _config(f, odd=[1.0, float("nan")]), "odd = NaN, which is no number"),
    "beyond numbers": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "rope_theta": 1e999}'),
        "rope_theta = Infinity",
    ),
    "a size as text": (
        lambda f: _config(f, hidden_size="64"),
        'hidden_size = "64", and it is a whole number from 1 on',
    ),
    "half a head": (lambda f: _config(f, num_attention_heads=1.5), "num_attention_heads = 1.5, and it is a whole"),
    "heads below none": (lambda f: _config(f, num_key_value_heads=-2), "num_key_value_heads = -2, and it is a whole"),
    "a size that is true": (lambda f: _config(f, hidden_size=True), "hidden_size = true, and it is a whole number"),
    "head": (lambda f: _without_head(f, tie_word_embeddings=False), r"no output head \(lm_head.weight\).* hint: "),
    "head, as Llama has it": (lambda f: _without_head(f), r"no output head \(lm_head.weight\)"),
    "layers": (
        lambda f: _config(f, num_hidden_layers=7),
        r"num_hidden_layers = 7, and .* weights of \d layers. hint: ",
    ),
    "architecture": (
        lambda f: _config(f, model_type="warp_drive", architectures=["WarpForCausalLM"]),
        r"'warp_drive' \(WarpForCausalLM\), which is no architecture that transformers [\d.]+ generates text with",
    ),
    "architecture for pictures": (
        lambda f: _config(f, model_type="vit"),
        "hint: it knows ViTModel, which is no model of text",
    ),
    "no architecture": (lambda f: _config(f, model_type=None), "config.json does not say model_type"),
    "translation": (
        lambda f: _config(f, model_type="bart", is_encoder_decoder=True),
        "a bart model has an encoder and a decoder",
    ),
    "labels of tokens": (
        lambda f: _config(f, architectures=["LlamaForTokenClassification"]),
        "'LlamaForTokenClassification', and .* no text",
    ),
    "running state": (
        lambda f: _config(f, model_type="mamba2"),
        "a mamba2 model has layers that keep a running state.* hint:",
    ),
    "linear attention": (
        lambda f: _config(f, layer_types=["linear_attention", "full_attention"]),
        "layers of kind linear_attention, for which",
    ),
    "piped configuration": (_piped_config, "config.json that is not a regular file but a pipe"),
    "lost configuration": (_lost_config, "config.json that is a link to 6b3f, which is not there. hint: "),
    "pointer": (_weights("model.safetensors", odd_files.FOREIGN["git lfs pointer"][0]), "git LFS pointer"),
    "page": (_weights("model.safetensors", odd_files.FOREIGN["html"][0]), "a web page"),
    "no bytes": (_weights("model.safetensors", b""), "it is empty"),
    "zeros": (_weights("model.safetensors", bytes(4096)), "begins with zeros"),
    "unfinished": (_weights("model.safetensors.incomplete"), "a download that is not finished"),
    "onnx": (_weights("model.onnx"), "weights are model.onnx"),
    "gguf": (_weights("m.gguf"), "holds GGUF files, each a model. hint: name one: m.gguf"),
    "pickled": (_weights("pytorch_model.bin"), "pickle can run code"),
    "mlx": (lambda f: _config(f, quantization={"group_size": 64, "bits": 4}), "quantised by MLX"),
    "awq": (lambda f: _config(f, quantization_config={"quant_method": "awq", "bits": 4}), "stored with awq"),
    "exl2": (lambda f: _config(f, quantization_config={"quant_method": "exl2"}), "stored with exl2"),
    "fp8": (lambda f: _config(f, quantization_config={"quant_method": "fp8"}), "stored with fp8"),
    "adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "a LoRA adapter"),
    "pictures": (
        lambda f: (f / "config.json").rename(f / "model_index.json"),
        "onecard draws with StableDiffusionPipeline",
    ),
    "original": (lambda f: (f / "config.json").rename(f / "params.json"), "model's own makers"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_served_says_why_at_the_first_look(tmp_path: Path, case: str) -> None:
    change, sentence = FOLDERS[case]
    folder = Path(shutil.copytree(demo.HF_PATH, tmp_path / "m"))
    change(folder)
    with pytest.raises((LocateError, HeaderError), match=sentence):
        _look(folder)


def _look(folder: Path) -> None:
    (entry,) = Catalog(Settings.model_validate({"models": {"m": {"path": str(folder)}}})).entries
    look(entry)
