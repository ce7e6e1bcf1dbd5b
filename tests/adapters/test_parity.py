"""What a folder's adapters compute, held against peft's own; and what they leave as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import demo
from backends.bnb.loading import load
from tests.adapters.passes import options, prompts_of, together
from tests.adapters.test_files import Q_PROJ, with_tensors
from tests.models import lora
from tests.specs import spec_of

pytestmark = pytest.mark.engine
SEEDS = range(1, 6)
ADAPTERS = [f"a{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ranks that fill more than one stack, scales by both rules, parts of the layers, and the head."""
    top = tmp_path_factory.mktemp("adapters")
    special: dict[int, dict[str, Any]] = {
        2: {"rank": 32, "use_rslora": True},
        3: {"rank": 4, "targets": ("q_proj", "v_proj")},
        4: {"rank": 32, "targets": ("down_proj", "o_proj"), "alpha_pattern": {"o_proj": 7}},
    }
    return {f"a{seed}": lora.build_folder(top / f"a{seed}", seed, **special.get(seed, {})) for seed in SEEDS}


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Any]:
    spec = spec_of("demo", "bnb", demo.HF_PATH, parallel=8, threads=1, options=options(folders))
    made = load(spec, lambda _: None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def base() -> Iterator[Any]:
    made: Any = load(spec_of("demo", "bnb", demo.HF_PATH, parallel=8, threads=1), lambda _: None)
    yield made
    made.close()


def overflowing(folder: Path, largest: float) -> Path:
    tensors = {f"{Q_PROJ}.lora_A.weight": (8, 192), f"{Q_PROJ}.lora_B.weight": (192, 8)}
    return with_tensors(
        folder, lambda t: t.update({name: np.full(shape, largest, np.float32) for name, shape in tensors.items()})
    )


def test_one_whose_numbers_overflow_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """All would be in one stack, where a mask of zeros keeps apart all but what is infinite."""
    folders = {name: lora.build_folder(tmp_path / name, 1, targets=("q_proj",)) for name in ("huge", "large", "good")}
    overflowing(folders["huge"], 3e38)
    overflowing(folders["large"], 5e18)  # only what they make of each other is infinite, and a first pass shows it
    engines: dict[str, Any] = {}
    for name, chosen in {"all": folders, "good": {"good": folders["good"]}, "none": {}}.items():
        spec = spec_of("demo", "bnb", demo.HF_PATH, parallel=2, threads=1, options=options(chosen) if chosen else {})
        engines[name] = load(spec, lambda _: None)

    found = {name: together(engine, prompts_of(2), ["", ""]) for name, engine in engines.items()}
    adapted = {name: together(engines[name], prompts_of(2), ["good", ""]) for name in ("all", "good")}
    facts = {name: engine.ready() for name, engine in engines.items()}
    for engine in engines.values():
        engine.close()

    told = facts["all"].generator.adapters
    assert "with which its base computes none" in told["huge"]
    assert "no numbers (NaN or infinite)" in told["large"]
    assert told["good"] == ""
    for one in (*found["all"], *adapted["all"]):
        assert np.isfinite(one).all()
    for place in range(2):
        assert np.array_equal(found["all"][place], found["none"][place])
        assert np.array_equal(adapted["all"][place], adapted["good"][place])
    parts = {name: facts[name].parts for name in facts}
    assert parts["all"]["adapters"] == parts["good"]["adapters"] > 0, "what is refused is not kept"
    assert parts["all"]["weights"] == parts["none"]["weights"]


def by_peft(folder: Path, prompts: list[list[int]]) -> list[NDArray[np.float32]]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.HF_PATH, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.no_grad():
        return [adapted(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]


def test_every_row_of_a_mixed_batch_is_what_peft_computes_with_its_adapter_alone(
    engine: Any, folders: dict[str, Path]
) -> None:
    prompts = prompts_of(7)
    mixed = together(engine, prompts, ["", *ADAPTERS, "a1"])

    for place, name in [(1, "a1"), (2, "a2"), (3, "a3"), (4, "a4"), (5, "a5"), (6, "a1")]:
        (wanted,) = by_peft(folders[name], [prompts[place]])
        # Absolute 1e-5 is what kernels of float32 make of the base alone, at logits up to 17.
        assert np.abs(mixed[place] - wanted).max() < 1e-5 * np.abs(wanted).max(), name
        assert np.abs(mixed[place] - together(engine, [prompts[place]], [""])[0]).max() > 0.1, "it changes something"


def test_rows_of_the_base_are_bit_for_bit_what_they_are_without_adapters(engine: Any, base: Any) -> None:
    prompts = prompts_of(5)

    mixed = together(engine, prompts, ["", "a1", "", "a2", "a4"])
    alone = together(base, prompts, [""] * 5)

    for place in (0, 2):
        assert np.array_equal(mixed[place].view(np.uint32), alone[place].view(np.uint32))


def test_a_row_does_not_depend_on_the_adapters_of_others(engine: Any) -> None:
    prompts = prompts_of(5)

    mixed = together(engine, prompts, ["a1", "a2", "", "a5", "a1"])

    for place, name in enumerate(["a1", "a2", "", "a5", "a1"]):
        (alone,) = together(engine, [prompts[place]], [name])
        assert np.array_equal(alone, mixed[place]), name


def test_quantised_layers_take_adapters_too(folders: dict[str, Path], tmp_path: Path) -> None:
    chosen = {"a1": folders["a1"], "a3": folders["a3"]}
    named = {**options(chosen), "quantization": "bnb-4bit"}
    engine: Any = load(spec_of("demo", "bnb", demo.HF_PATH, parallel=4, threads=1, options=named), lambda _: None)
    prompts = prompts_of(3)

    mixed = together(engine, prompts, ["a1", "", "a3"])
    plain = together(engine, prompts, ["", "", ""])
    engine.close()

    assert np.array_equal(mixed[1], plain[1])
    assert np.abs(mixed[0] - plain[0]).max() > 0.1
    assert np.isfinite(mixed[2]).all()
