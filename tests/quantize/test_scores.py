"""The report's figures are those of a plain evaluation, and an importance matrix lowers the divergence."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from quantize import imatrix
from quantize.calibrate import calibrate
from quantize.scores.compare import compare
from quantize.scores.divergence import DivergenceTally, windows
from tests.quantize.conftest import GGUF, HF, make

pytestmark = pytest.mark.engine


def plain_perplexity(text: Path, *, size: int, n_windows: int) -> float:
    """transformers, window by window, the second halves scored; nothing of ours in it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(HF, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(HF)(text.read_text(), add_special_tokens=False)["input_ids"]
    losses = []
    for i in range(n_windows):
        window = torch.tensor([ids[i * size : (i + 1) * size]])
        with torch.no_grad():
            logits = model(window).logits[0].double()
        first = size // 2
        losses.append(torch.nn.functional.cross_entropy(logits[first:-1], window[0, first + 1 :], reduction="none"))
    return float(torch.cat(losses).mean().exp())


def test_perplexity_is_that_of_a_plain_evaluation(text: Path) -> None:
    found = compare(GGUF, GGUF, text, n_ctx=512, most_windows=6, threads=1)
    expected = plain_perplexity(text, size=512, n_windows=6)
    assert found.quality.perplexity == pytest.approx(expected, rel=0.005)
    assert found.quality.kl_mean == 0
    assert found.quality.agreement == 1
    assert found.quality.n_tokens == 6 * 255


def test_folder_and_file_of_the_same_weights_agree(text: Path) -> None:
    found = compare(HF, GGUF, text, n_ctx=256, most_windows=4, threads=1).quality
    assert found.kl_mean < 1e-4
    assert found.agreement > 0.99


def test_divergence_is_the_definition() -> None:
    pick = np.random.default_rng(0)
    base, other = pick.normal(size=(2, 40, 50)).astype(np.float32) * 3
    following = pick.integers(0, 50, 40)
    tally = DivergenceTally()
    tally.add(base[:25], other[:25], following[:25])
    tally.add(base[25:], other[25:], following[25:])
    p, q = (torch.tensor(one, dtype=torch.float64).log_softmax(-1) for one in (base, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    result = tally.result()
    assert result.kl_mean == pytest.approx(float(expected.mean()))
    assert result.kl_p999 == pytest.approx(float(expected.quantile(0.999)))
    assert result.perplexity == pytest.approx(float((-q[range(40), following].mean()).exp()))


def test_windows_begin_with_what_the_model_wants() -> None:
    assert windows(list(range(10)), size=4, first_token=99, most=5) == [[99, 1, 2, 3], [99, 5, 6, 7]]
    assert windows(list(range(10)), size=4, first_token=None, most=1) == [[0, 1, 2, 3]]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, other_text: Path) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "demo.imatrix.gguf"
    calibrate(GGUF, other_text, path, n_ctx_train=4096, threads=1)
    return path


def test_matrix_holds_the_squares_of_what_the_layers_are_fed(matrix: Path, other_text: Path) -> None:
    found = imatrix.read(matrix)
    model = transformers.AutoModelForCausalLM.from_pretrained(HF, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(module, args):
            sums[name] = sums.get(name, 0) + args[0][0].double().square().sum(0)

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.self_attn.k_proj.register_forward_pre_hook(watch(f"blk.{i}.attn_k.weight"))
        layer.self_attn.o_proj.register_forward_pre_hook(watch(f"blk.{i}.attn_output.weight"))
        layer.mlp.down_proj.register_forward_pre_hook(watch(f"blk.{i}.ffn_down.weight"))
    ids = transformers.AutoTokenizer.from_pretrained(HF)(other_text.read_text(), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for i in range(found.n_chunks):
            model(torch.tensor([ids[i * 512 : (i + 1) * 512]]))
    assert len(found.entries) == 28
    for name, expected in sums.items():
        assert found.entries[name].counts.tolist() == [found.n_chunks * 512]
        near = 1e-3 * float(expected.max())
        np.testing.assert_allclose(found.entries[name].squares[0], expected.numpy(), rtol=0.02, atol=near)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K_M"])
def test_matrix_lowers_the_divergence(tmp_path: Path, matrix: Path, text: Path, type_name: str) -> None:
    (without,) = make(GGUF, tmp_path / "a", type_name).written
    (with_it,) = make(GGUF, tmp_path / "b", type_name, imatrix=matrix).written
    one, other = (
        compare(GGUF, path, text, n_ctx=512, most_windows=6, threads=1).quality for path in (without, with_it)
    )
    assert other.kl_mean < one.kl_mean


def test_lowest_types_are_made_with_a_matrix(tmp_path: Path, matrix: Path) -> None:
    done = make(GGUF, tmp_path, "IQ2_XXS", "IQ1_S", imatrix=matrix)
    assert [path.stat().st_size for path in done.written] == [one.n_bytes for one in done.estimates]


def test_report_card_is_written_in_all_its_forms(tmp_path: Path, text: Path) -> None:
    (existing,) = make(GGUF, tmp_path / "old", "Q4_0", name="demo").written
    asked = {"name": "demo", "report": True, "text": text, "windows": 3, "also": (existing,)}
    done = make(HF, tmp_path / "out", "Q8_0", "bnb-4bit", **asked)
    assert done.card is not None
    assert [line.type_name for line in done.card.lines] == ["F16", "Q8_0", "bnb-4bit", "Q4_0"]
    kl = {line.type_name: line.scores.quality.kl_mean for line in done.card.lines if line.scores}
    assert kl["F16"] == 0
    assert 0 < kl["Q8_0"] < kl["Q4_0"]
    assert 0 < kl["bnb-4bit"] < 1
    by_suffix = {path.suffix: path.read_text() for path in done.reports}
    assert json.loads(by_suffix[".json"])["lines"][1]["scores"]["quality"]["n_tokens"] == 3 * 255
    assert "| Q8_0 |" in by_suffix[".md"]
    drawn = [element.text for element in ET.fromstring(by_suffix[".svg"]).iter() if element.text]
    assert {"Q8_0", "bnb-4bit", "Q4_0"} <= set(drawn)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "demo-Q8_0.gguf", "demo-bnb-4bit", "demo.report.json", "demo.report.md", "demo.report.svg",
    ]  # fmt: skip
