"""Types that rows cannot hold: told with the count where llama.cpp chooses, refused where the user did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.gguf import header
from quantize.done import Done
from quantize.errors import QuantizeError
from tests.models import odd_files
from tests.models.shapes import LLAMA, build
from tests.quantize.conftest import HF, make

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Models whose rows are 288 wide (whole blocks of 32) and 80 wide (none)."""
    place = tmp_path_factory.mktemp("narrow")
    shapes = {
        288: replace(LLAMA, n_embd=288, n_heads=9, n_kv_heads=3, n_ff=768),
        80: replace(LLAMA, n_embd=80, n_heads=5, n_kv_heads=5, head_size=16, n_ff=240),
    }
    return {width: build(place / f"w{width}.gguf", shape) for width, shape in shapes.items()}


def types_of(done: Done) -> dict[str, str]:
    return {tensor.name: tensor.type_name for tensor in header.read(done.written[0]).tensors if len(tensor.shape) > 1}


@pytest.mark.parametrize(("width", "instead"), [(288, {"Q5_0", "Q8_0"}), (80, {"F16"})])
def test_each_replaced_type_is_told_with_its_count(
    narrow: dict[int, Path], tmp_path: Path, width: int, instead: set[str]
) -> None:
    done = make(narrow[width], tmp_path, "Q4_K_M")

    told = [remark.split() for remark in done.estimates[0].remarks]
    types = types_of(done)
    n_told = sum(int(words[1]) for words in told)
    assert 0 < n_told <= sum(1 for kind in types.values() if kind in instead)
    assert n_told >= sum(1 for name, kind in types.items() if kind in instead and name.startswith("blk."))
    assert {words[6] for words in told} == instead
    assert all(f"of {len(types)} matrices" in remark for remark in done.estimates[0].remarks)


def test_a_type_that_fits_everywhere_has_no_remark(tmp_path: Path) -> None:
    assert make(HF, tmp_path, "Q8_0", dry_run=True).estimates[0].remarks == ()


@pytest.mark.parametrize(
    ("width", "type_name", "more", "sentence"),
    [
        (288, "Q4_0", {"overrides": (("attn_q", "Q4_K"),)}, r"attn_q = Q4_K cannot be had for blk\.0\.attn_q\.weight"),
        (288, "Q4_0", {"output_type": "Q6_K"}, r"output-type = Q6_K cannot be had"),
        (288, "Q4_0", {"embedding_type": "IQ4_XS"}, r"embedding-type = IQ4_XS cannot be had"),
        (80, "Q8_0", {"overrides": (("ffn_up", "Q4_0"),)}, "rows of 80 are no multiple of 32. hint: F16 can"),
        (288, "F16", {"overrides": (("attn_q", "Q8_0"),)}, "F16, which has one type for all matrices"),
        (288, "Q4_0", {"overrides": (("attn_norm", "Q8_0"),)}, "llama.cpp keeps what it matches"),
    ],
)
def test_an_explicit_type_that_cannot_be_had_is_refused(
    narrow: dict[int, Path], tmp_path: Path, width: int, type_name: str, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(QuantizeError, match=sentence) as caught:
        make(narrow[width], tmp_path / "out", type_name, **more)
    assert caught.value.usage
    assert not (tmp_path / "out").exists()


def test_a_choice_for_some_matrices_is_not_dropped_for_a_folder(tmp_path: Path) -> None:
    for type_name in ("bnb-8bit", "BF16"):
        with pytest.raises(QuantizeError, match="one type for all matrices"):
            make(HF, tmp_path / "out", "Q4_0", type_name, overrides=(("ffn_down", "Q8_0"),))


def test_a_matrix_of_importance_that_nothing_would_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(QuantizeError, match="changes nothing in F16"):
        make(HF, tmp_path / "out", "F16", imatrix=tmp_path / "m.gguf")


def test_json_and_the_report_have_the_remarks(narrow: dict[int, Path], tmp_path: Path) -> None:
    from quantize.report.card import Card, Line, as_json, as_markdown

    line = Line("m", "Q4_K_M", 1, 1.0, (None,), None, make(narrow[288], tmp_path, "Q4_K_M").estimates[0].remarks)
    card = Card("m", "text", 1, None, "cpu", (512,), (line,))
    assert line.remarks[0] in as_markdown(card)
    assert json.loads(as_json(card))["lines"][0]["remarks"] == list(line.remarks)


def test_a_file_that_is_no_model_is_no_source(tmp_path: Path) -> None:
    adapter, sentence = odd_files.UNSERVABLE["adapter"]
    with pytest.raises(QuantizeError, match=sentence):
        make(adapter(tmp_path / "m.gguf"), tmp_path / "out", "Q8_0")
