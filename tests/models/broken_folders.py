"""Copies of the demo model's folder that are broken or ask for more than they may, and what is said of each."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demo


def make(case: str, place: Path) -> Path:
    """The folder of one case of the table."""
    folder = Path(shutil.copytree(demo.HF_PATH, place))
    TABLE[case][0](folder)
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    document = json.loads((folder / name).read_text())
    document.update(changes)
    (folder / name).write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_demo.Demo"})
    (folder / "modeling_demo.py").write_text("raise SystemExit('the code of a stranger ran')")


def tokenizer_code(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Tok", None]})


def broken_index(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def wrong_shape(folder: Path) -> None:
    edit(folder, "config.json", intermediate_size=640)


def too_few_layers(folder: Path) -> None:
    edit(folder, "config.json", num_hidden_layers=5)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def cut(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def endless_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + bytes(64))


def tokenizer_steps(*steps: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "tokenizer.json", normalizer={"type": "Sequence", "normalizers": list(steps)})


DOUBLES = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
PREPENDS = {"type": "Prepend", "prepend": "x" * 2**20}


def long_name(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "x" * 5000}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


TABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, r"pickled \(pytorch_model.bin\).*hint"),
    "code": (own_code, r"config.json asks for Python code.*modeling_demo.py.*hint.*trust_remote_code"),
    "tokenizer code": (tokenizer_code, r"tokenizer_config.json asks for Python code.*hint"),
    "trust": (lambda f: edit(f, "config.json", trust_remote_code=True), r"config.json sets trust_remote_code.*hint"),
    "attention": (
        lambda f: edit(f, "config.json", _attn_implementation_internal="kernels-community/evil"),
        r"config.json names an attention of its own in _attn_implementation_internal",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no weights: neither model.safetensors.*hint"),
    "index": (broken_index, r"index.json names model-00001-of-00002.safetensors, which is not there.*hint"),
    "shape": (wrong_shape, r"safetensors files hold \S+ with shape \[\d+, \d+\], config.json says \[\d+, \d+\]"),
    "missing tensors": (too_few_layers, r"safetensors files lack \d+ tensors"),
    "no tokenizer": (no_tokenizer, r"no tokenizer: none of tokenizer.json.*hint"),
    "architecture": (
        lambda f: edit(f, "config.json", model_type="warp_drive"), r"model_type = 'warp_drive'.*no architecture"
    ),
    "architecture as a list": (lambda f: edit(f, "config.json", model_type=["llama"]), r"model_type, and not as text"),
    "layers below none": (lambda f: edit(f, "config.json", num_hidden_layers=-1), r"num_hidden_layers = -1"),
    "no layers": (lambda f: edit(f, "config.json", num_hidden_layers=0), r"num_hidden_layers = 0"),
    "method": (
        lambda f: edit(f, "config.json", quantization_config={"quant_method": "gptq"}), r"stored with gptq.*hint"
    ),
    "cut": (cut, r"model.safetensors"),
    "header": (endless_header, r"announces a header of"),
    "endless modules": (lambda f: (f / "modules.json").symlink_to("/dev/zero"), r"modules.json is not a .*a device"),
    "piped modules": (lambda f: os.mkfifo(f / "modules.json"), r"modules.json is not a regular file but a pipe"),
    "piped adapter": (lambda f: os.mkfifo(f / "adapter_config.json"), r"adapter_config.json is not .* a pipe.*hint"),
    "labels": (lambda f: edit(f, "config.json", num_labels=2**31), r"num_labels = 2147483648.*at most.*hint"),
    "vocabulary": (lambda f: edit(f, "config.json", vocab_size=2**31), r"vocab_size = 2147483648.*hint"),
    "a billion layers": (lambda f: edit(f, "config.json", num_hidden_layers=10**9), r"= 1000000000, and the weights"),
    "experts": (lambda f: edit(f, "config.json", num_experts=10**9), r"num_experts = 1000000000.*hint"),
    "doubling": (tokenizer_steps(*[DOUBLES] * 40), r"tokenizer.json makes a text too long.*'Replace'.*hint"),
    "prepending": (tokenizer_steps(PREPENDS), r"tokenizer.json makes a text too long.*'Prepend'.*hint"),
    "many steps": (tokenizer_steps(*[{"type": "NFKD"}] * 500), r"tokenizer.json has 50. steps"),
    "a long name": (long_name, r"names x{20,}.*which is not there"),
    "config": (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON"),
}  # fmt: skip
"""By name: what is done to a good folder, and a pattern of the sentence it is refused with."""
