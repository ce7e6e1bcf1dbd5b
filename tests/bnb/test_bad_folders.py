"""Folders that are broken or ask for more than they may: refused by name, and nothing in them is run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.bnb.loading import load
from backends.engine import LoadError
from backends.messages import LoadModel

pytestmark = pytest.mark.engine


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


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (pickled, r"pickled \(pytorch_model.bin\).*hint"),
    "code": (own_code, r"config.json asks for Python code.*modeling_demo.py.*hint.*trust_remote_code"),
    "tokenizer code": (tokenizer_code, r"tokenizer_config.json asks for Python code.*hint"),
    "trust": (lambda f: edit(f, "config.json", trust_remote_code=True), r"config.json sets trust_remote_code.*hint"),
    "attention": (
        lambda f: edit(f, "config.json", _attn_implementation_internal="kernels-community/evil"),
        r"config.json names an attention of its own in _attn_implementation_internal",
    ),
    "index": (broken_index, r"model-00001-of-00002.safetensors cannot be opened"),
    "shape": (wrong_shape, r"safetensors|shape|size"),
    "missing tensors": (too_few_layers, r"safetensors files lack \d+ tensors"),
    "no tokenizer": (no_tokenizer, r"no tokenizer: none of tokenizer.json.*hint"),
    "architecture": (
        lambda f: edit(f, "config.json", model_type="warp_drive"), r"model_type = 'warp_drive'.*no architecture"
    ),
    "method": (
        lambda f: edit(f, "config.json", quantization_config={"quant_method": "gptq"}), r"stored with gptq.*hint"
    ),
    "cut": (cut, r"model.safetensors"),
    "header": (endless_header, r"announces a header of"),
    "config": (lambda f: (f / "config.json").write_text("{"), r"config.json is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_folder_is_refused_with_its_files_name(folder: Path, case: str) -> None:
    damage, said = CASES[case]
    damage(folder)

    with pytest.raises(LoadError, match=said) as caught:
        load(LoadModel("bad", "bnb", str(folder), context=256, parallel=1), lambda _: None)

    assert str(folder) not in caught.value.message


WATCHED = """
import sys
from backends.bnb import loading
from backends.engine import LoadError
from backends.messages import LoadModel
seen = []
def hook(name, args):
    if name in ("subprocess.Popen", "os.system", "os.exec", "socket.connect") or (
        name in ("exec", "compile") and sys.argv[1] in str(args)
    ) or (name == "open" and str(args[0]).startswith(sys.argv[1]) and str(args[0]).endswith((".py", ".bin"))):
        seen.append(name)
sys.addaudithook(hook)
try:
    loading.load(LoadModel("bad", "bnb", sys.argv[1], context=256, parallel=1), lambda _: None)
except LoadError as error:
    print(error.message)
print("seen", seen)
"""


def test_nothing_of_a_strangers_folder_is_run_opened_or_asked_for(folder: Path) -> None:
    own_code(folder)
    edit(folder, "config.json", trust_remote_code=True, _attn_implementation_internal="kernels-community/evil")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo pwned'\ntR.")

    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, timeout=120, check=True
    )

    assert "trust_remote_code" in done.stdout
    assert done.stdout.endswith("seen []\n")


def test_another_quantisation_than_the_stored_one_is_refused(folder: Path) -> None:
    edit(folder, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    spec = LoadModel("bad", "bnb", str(folder), context=256, parallel=1, options={"quantization": "bnb-8bit"})

    with pytest.raises(LoadError, match=r"stored in 4 bits.*hint"):
        load(spec, lambda _: None)
