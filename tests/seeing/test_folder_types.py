"""Folders with eyes, one of each type: what they answer is what transformers' own `generate` answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backends.bnb import sight
from backends.bnb.backend import Folders
from backends.bnb.loading import load
from backends.engine import AnyEngine, LoadError
from backends.messages import ChatPrompt, Generate, Sampling
from tests.gguf.driver import run
from tests.models import seeing_folders
from tests.models.seeing import picture
from tests.seeing.driver import medium
from tests.specs import spec_of

pytestmark = pytest.mark.engine
N_TOKENS = 8
SCENE = picture(1, width=150, height=100)


def opened(path: Path, **options: Any) -> AnyEngine:
    spec = spec_of(
        name="seer", backend="bnb", path=path, context=512, parallel=2, threads=1, kv_type="f32",
        options={"image_max_tokens": 64, **options},
    )  # fmt: skip
    return load(spec, lambda _: None)


def asked(name: str, *, data: bytes = SCENE) -> Generate:
    parts = [{"type": "text", "text": "Look"}, {"type": "medium", "medium": 0}, {"type": "text", "text": "What is it?"}]
    prompt = ChatPrompt([{"role": "user", "content": parts}], media=[medium(data)])
    return Generate(name, prompt, max_tokens=N_TOKENS, ignore_eos=True, sampling=Sampling(temperature=0), logprobs=1)


def theirs(model: Any, engine: Any) -> list[float]:
    """How likely transformers finds its own greedy answer to the same tokens."""
    prepared = engine.prepare(asked("told"))
    tokens = prepared.prompt.astype(np.int64)
    for rows in prepared.layout.media:
        tokens[rows.first : rows.end] = model.config.image_token_id
    ids = torch.from_numpy(tokens)[None]
    pixels = np.asarray(Image.open(io.BytesIO(SCENE)).convert("RGB"))
    inputs = engine._model.tower._preparation.inputs(pixels)
    told = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    told |= {name: (ids == model.config.image_token_id).long() for name in told if name.endswith("token_type_ids")}
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=N_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **told,
    )
    return [float(logits[0].log_softmax(-1).max()) for logits in answer.logits]


def test_every_type_has_a_folder_here() -> None:
    assert set(seeing_folders.MAKERS) == sight.TYPES


@pytest.mark.parametrize("kind", sorted(sight.TYPES))
def test_it_answers_as_transformers_does(kind: str, tmp_path: Path) -> None:
    model = seeing_folders.write(tmp_path, kind)
    header = Folders().describe(tmp_path, {"image_max_tokens": 64})
    assert "vision" in header.capabilities
    assert "chat" in header.capabilities
    engine = opened(tmp_path)
    [outcome] = run(engine, [asked("ours")])
    assert [entry.logprob for entry in outcome.logprobs()] == pytest.approx(theirs(model, engine), abs=1e-3)
    [again] = run(engine, [asked("other", data=picture(2, width=150, height=100))])
    assert again.logprobs()[0].logprob != outcome.logprobs()[0].logprob
    engine.close()


def test_an_image_takes_no_more_tokens_than_it_may(tmp_path: Path) -> None:
    seeing_folders.write(tmp_path, "qwen2_vl")
    engine = opened(tmp_path)
    rows = engine.prepare(asked("large", data=picture(1, width=1200, height=900))).layout.media  # type: ignore[union-attr]
    assert 40 < sum(one.n_rows for one in rows) <= 64
    engine.close()


@pytest.mark.parametrize("bits", ["bnb-4bit", "bnb-8bit"])
def test_eyes_stay_as_they_are_unless_they_are_to_be_quantised(bits: str, tmp_path: Path) -> None:
    seeing_folders.write(tmp_path, "llava")

    def kinds(**options: Any) -> tuple[set[str], set[str], int]:
        engine: Any = opened(tmp_path, quantization=bits, **options)
        modules = dict(engine._model.tower._model.named_modules())
        found = {
            part: {type(module).__name__ for name, module in modules.items() if part in name and name.endswith("proj")}
            for part in ("vision_tower", "language_model")
        }
        told = Folders().describe(tmp_path, {"quantization": bits, **options})
        estimated = Folders().estimate(told, spec_of("seer", "bnb", tmp_path).plan).host.projector
        engine.close()
        return found["vision_tower"], found["language_model"], estimated

    eyes, language, whole = kinds()
    assert eyes == {"Linear"}
    assert language <= {"Linear4bit", "Linear8bitLt", "IntegerLinear"}
    quantised, _, packed = kinds(quantize_vision=True)
    assert quantised <= {"Linear4bit", "Linear8bitLt", "IntegerLinear"}
    assert packed < whole


def test_a_folder_that_does_not_say_how_images_are_prepared_is_refused(tmp_path: Path) -> None:
    seeing_folders.write(tmp_path, "llava")
    for name in sight.PREPARES:
        (tmp_path / name).unlink()
    with pytest.raises(Exception, match=r"neither preprocessor_config\.json nor processor_config\.json"):
        Folders().describe(tmp_path, {})


def test_a_processor_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    seeing_folders.write(tmp_path, "llava")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchProcessor"}))
    with pytest.raises(LoadError, match="how the folder wants images prepared cannot be read"):
        opened(tmp_path)
