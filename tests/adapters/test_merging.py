"""An adapter merged into its base: numbers are peft's own, whatever the shape; and what cannot be merged is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import demo
from quantize.done import Done
from quantize.errors import QuantizeError
from quantize.files import SPARE_BYTES
from quantize.merged import make
from quantize.order import Order
from quantize.work import run
from tests.models import lora
from tests.quantize.conftest import Silent
from tests.training.test_shapes import SHAPES, base_of

pytestmark = pytest.mark.engine
WEIGHTS = "model.safetensors"


def adapter_of(base: Path, folder: Path, **config: Any) -> Path:
    """Random matrices on every linear layer, as peft writes them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    inputs_first = any(isinstance(module, Conv1D) for module in model.modules())
    asked = {"r": 4, "lora_alpha": 10, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    made = get_peft_model(model, LoraConfig(fan_in_fan_out=inputs_first, **asked))
    torch.manual_seed(3)
    for name, matrix in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(matrix, std=0.1)
    made.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def merged(source: Path, out: Path, *types: str, **fields: Any) -> Done:
    return run(Order(source, out, types or ("hf",), threads=1, **fields), Silent())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(40)[None]).logits
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_every_number_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    special: dict[str, Any] = {
        "Mistral": {"use_rslora": True},
        "Qwen2": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        "GPT2": {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    }
    base = base_of(name, tmp_path / "base")
    source = adapter_of(base, tmp_path / "pirate", **special.get(name, {}))

    (made,) = merged(source, tmp_path / "out", base=base).written

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source).eval()
    wanted = adapted.merge_and_unload().state_dict()
    plain, found = load_file(base / WEIGHTS), load_file(made / WEIGHTS)
    assert made == tmp_path / "out" / "pirate-hf"
    assert found.keys() == plain.keys()
    for key, matrix in found.items():
        assert (matrix - wanted[key]).abs().max() <= 1e-5, key
    n_pairs = sum("lora_A" in key for key in load_file(source / "adapter_model.safetensors"))
    assert sum(not torch.equal(found[key], plain[key]) for key in plain) == n_pairs
    assert (logits(AutoModelForCausalLM.from_pretrained(made)) - logits(adapted.base_model.model)).abs().max() < 1e-5
    beside = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    assert all((made / file).read_bytes() == (base / file).read_bytes() for file in beside)


@pytest.mark.parametrize("name", ["Gemma2", "GPT2"])
def test_a_tied_head_that_is_taught_becomes_one_of_its_own(name: str, tmp_path: Path) -> None:
    base = base_of(name, tmp_path / "base")
    source = adapter_of(base, tmp_path / "pirate", target_modules=["lm_head"])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source).eval()
    wanted = logits(adapted)

    (made,) = merged(source, tmp_path / "out", base=base).written

    served = AutoModelForCausalLM.from_pretrained(made)
    assert served.config.tie_word_embeddings is False
    assert (logits(served) - wanted).abs().max() < 1e-5
    assert (wanted - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.01


def test_halves_stay_halves_and_shards_keep_their_names(tmp_path: Path) -> None:
    base = base_of("Llama", tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(base)
    source = adapter_of(base, tmp_path / "pirate")
    wanted = PeftModel.from_pretrained(model, source).merge_and_unload().state_dict()
    halves = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    halves.save_pretrained(tmp_path / "halves", max_shard_size="100KB")

    (made,) = merged(source, tmp_path / "out", base=tmp_path / "halves").written

    names = [path.name for path in sorted((tmp_path / "halves").glob("model*"))]
    assert len(names) > 3
    assert [path.name for path in sorted(made.glob("model*"))] == names
    found = AutoModelForCausalLM.from_pretrained(made)
    assert found.dtype == torch.bfloat16
    for key, matrix in found.state_dict().items():
        assert (matrix.float() - wanted[key]).abs().max() <= 2**-7 * wanted[key].abs().max(), key


def test_numbers_that_the_type_cannot_hold_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    base = base_of("Llama", tmp_path / "base")
    tensors = {name: matrix.half() for name, matrix in load_file(base / WEIGHTS).items()}
    save_file(tensors, base / WEIGHTS, {"format": "pt"})
    source = lora.rewrite(adapter_of(base, tmp_path / "pirate"), lora_alpha=4e7)

    with pytest.raises(QuantizeError, match=r"which F16 cannot hold\. hint: is the adapter one of this very base"):
        merged(source, tmp_path / "out", base=base)

    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_merged_is_told_with_what_to_do(tmp_path: Path) -> None:
    base = base_of("Llama", tmp_path / "base")
    source = adapter_of(base, tmp_path / "pirate", target_modules=["q_proj"])

    def refused(*types: str, **fields: Any) -> str:
        with pytest.raises(QuantizeError) as told:
            merged(source, tmp_path / "out", *types, **fields)
        assert told.value.usage
        assert not (tmp_path / "out").exists()
        return told.value.message

    assert "hint: --base FOLDER" in refused()
    assert "is a file, and an adapter is merged into the model folder" in refused(base=Path(demo.GGUF_PATH))
    assert "hint: two runs" in refused("gguf", "Q8_0", base=base)
    assert "hint: --to hf" in refused("gguf", base=base)
    assert "no linear layer of this model" in refused(base=base_of("GPT2", tmp_path / "gpt2"))
    assert "has 128 and 128 there" in refused(base=resized(tmp_path / "wide"))
    assert "--dry-run has nothing to say of hf" in refused(base=base, dry_run=True)
    assert "--report has nothing to say of hf" in refused(base=base, report=True)
    assert "--imatrix has nothing to say of hf" in refused(base=base, imatrix=tmp_path / "none")
    assert "--pure has nothing to say of gguf" in refused("gguf", base=Path(demo.GGUF_PATH), pure=True)
    assert "nothing to make" in run_refused(Order(source, tmp_path / "out", (), base=base))
    config = json.loads((base / "config.json").read_text())
    packed = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(packed))
    assert "hint: --base names the unquantised folder" in refused(base=base)
    lora.rewrite(source, use_dora=True)
    (base / "config.json").write_text(json.dumps(config))
    assert "DoRA" in refused(base=base)


def test_no_output_takes_the_place_of_the_adapter_or_of_what_is_there(tmp_path: Path) -> None:
    base = base_of("Llama", tmp_path / "base")
    source = adapter_of(base, tmp_path / "pirate-hf", target_modules=["q_proj"])
    there = tmp_path / "out" / "pirate-hf-Q8_0.gguf"
    there.parent.mkdir()
    there.write_bytes(b"mine")

    itself = run_refused(Order(source, tmp_path, ("hf",), base=base, name="pirate", force=True))
    taken = run_refused(Order(source, tmp_path / "out", ("hf", "Q8_0"), base=base))

    assert itself == "the output pirate-hf is the source itself"
    assert "pirate-hf-Q8_0.gguf exists. hint: --force" in taken
    assert (source / "adapter_config.json").is_file()
    assert list(there.parent.iterdir()) == [there], "nothing is merged before it is told"


def test_the_disk_is_asked_for_all_outputs_before_anything_is_merged(tmp_path: Path) -> None:
    base = base_of("Llama", tmp_path / "base")
    order = Order(adapter_of(base, tmp_path / "pirate"), tmp_path / "out", ("hf", "Q8_0"), base=base, threads=1)
    heard = Silent()
    foreseen = run(replace(order, dry_run=True), heard)
    assert any("hf: " in line and "as pirate-hf, the merged folder" in line for line in heard.lines)
    made = run(replace(order, out=tmp_path / "made"), Silent())
    assert foreseen.needed_bytes == made.needed_bytes > sum(one.n_bytes for one in made.estimates)

    def in_want_of_room(asked: Order, tell: Any) -> Done:
        return replace(run(asked, tell), needed_bytes=2**52)

    with pytest.raises(QuantizeError, match=r"the outputs need .* are free where out lies"):
        make(order, Silent(), in_want_of_room)

    assert list((tmp_path / "out").iterdir()) == []


def test_another_converters_outputs_are_foreseen_too(tmp_path: Path) -> None:
    """It would run behind the merging: names and room are asked for before."""
    base = base_of("Llama", tmp_path / "base")
    source = adapter_of(base, tmp_path / "pirate", target_modules=["q_proj"])
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    taken = tmp_path / "out" / "pirate-Q8_0.gguf"
    taken.parent.mkdir()
    taken.write_bytes(b"mine")
    order = Order(source, taken.parent, ("hf", "Q8_0"), base=base, converter=script)
    n_weights = sum(matrix.numel() for name, matrix in load_file(base / WEIGHTS).items() if name != "lm_head.weight")

    assert "pirate-Q8_0.gguf exists. hint: --force" in run_refused(order)
    assert "holds no convert_hf_to_gguf.py" in run_refused(
        replace(order, types=("hf", "Q4_0"), converter=tmp_path / "x")
    )
    disk = shutil.disk_usage(tmp_path)
    least = sum(size for size in (load_bytes(base), n_weights * 2, n_weights * 18 // 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=least + SPARE_BYTES - 1))
        assert "are free where out lies" in run_refused(replace(order, types=("hf", "Q4_0")))

    assert not (tmp_path / "ran").exists()
    assert list(taken.parent.iterdir()) == [taken]


def load_bytes(folder: Path) -> int:
    return sum(matrix.nbytes for matrix in load_file(folder / WEIGHTS).values())


def resized(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**{**SHAPES["Llama"], "hidden_size": 128})).save_pretrained(folder)
    return folder


def run_refused(order: Order) -> str:
    with pytest.raises(QuantizeError) as told:
        run(order, Silent())
    return told.value.message
