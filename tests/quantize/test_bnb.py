"""bitsandbytes folders load in transformers as they are and say nearly what the source says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.quantize.conftest import HF, make

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("type_name", ["bnb-4bit", "bnb-fp4", "bnb-8bit"])
def test_folder_loads_and_answers(tmp_path: Path, type_name: str) -> None:
    done = make(HF, tmp_path, type_name, name="demo")
    (folder,) = done.written
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert weights == pytest.approx(done.estimates[0].n_bytes, rel=0.05)
    assert (folder / "tokenizer.json").read_bytes() == (HF / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == (HF / "chat_template.jinja").read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.is_quantized
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        made = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(made[0])


def test_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (folder,) = make(HF, tmp_path, "bnb-8bit", name="demo").written
    (folder / "mine.txt").write_text("old")
    make(HF, tmp_path, "bnb-4bit", "bnb-8bit", name="demo", force=True)
    assert not (folder / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-bnb-4bit", "demo-bnb-8bit"]
