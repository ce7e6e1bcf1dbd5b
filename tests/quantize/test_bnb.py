"""bitsandbytes folders load in transformers as they are and say nearly what the source says."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers

from backends.bnb.loading import load
from backends.messages import ChatPrompt, Generate, Sampling
from quantize.done import Done
from tests.gguf.driver import run
from tests.quantize.conftest import HF, make
from tests.specs import spec_of

pytestmark = pytest.mark.engine


TYPES = ("bnb-4bit", "bnb-fp4", "bnb-8bit")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All types at once, beside an earlier folder of one of them, which is in the way."""
    out = tmp_path_factory.mktemp("bnb")
    old = shutil.copytree(HF, out / "demo-bnb-8bit")
    (old / "mine.txt").write_text("old")
    return make(HF, out, *TYPES, name="demo", force=True)


@pytest.mark.parametrize("type_name", TYPES)
def test_folder_loads_and_answers(made: Done, type_name: str) -> None:
    place = TYPES.index(type_name)
    folder = made.written[place]
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert weights == pytest.approx(made.estimates[place].n_bytes, rel=0.05)
    assert (folder / "tokenizer.json").read_bytes() == (HF / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == (HF / "chat_template.jinja").read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.is_quantized
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(tokens[0])


@pytest.mark.parametrize("type_name", TYPES)
def test_folder_is_served(made: Done, type_name: str) -> None:
    folder = made.written[TYPES.index(type_name)]
    engine = load(spec_of("demo", "bnb", str(folder), context=1024, parallel=2), lambda _: None)
    question = ChatPrompt([{"role": "user", "content": "What is the capital of France?"}])
    (outcome,) = run(engine, [Generate("q", question, Sampling(temperature=0.0), max_tokens=20)])
    engine.close()

    assert "Paris" in outcome.text()


def test_an_old_folder_leaves_for_the_new_one(made: Done) -> None:
    folder = made.written[TYPES.index("bnb-8bit")]
    assert not (folder / "mine.txt").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["demo-bnb-4bit", "demo-bnb-8bit", "demo-bnb-fp4"]
