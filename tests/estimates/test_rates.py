"""The processes that measure this machine, and what is foretold of the demo model on either backend from it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.bnb.header import read as read_folder
from backends.bnb.speed import FolderSpeeds
from backends.border import rates
from backends.gguf.ggml_calls import FACTORS, N_BLOCKS, blocks_of
from backends.gguf.header import read as read_file
from backends.gguf.speed import GgufSpeeds
from backends.messages import EncoderPlan, GeneratorPlan
from backends.speed import Machine, Rates
from demo import HF_PATH
from server.settings.builtin import built_in_path

PLAN = GeneratorPlan(2048, 1)
SLOW = Rates(
    {"f32": 1e9, "nf4": 1e8, "bf16": 1e9}, {}, {"f32": 1e9}, 1e12, {"f32 32": 1e9}, {"f32 32": 1e9}, like="f32"
)


def test_a_folder_reads_all_its_matrices_but_an_embedding_that_is_no_output() -> None:
    header = read_folder(HF_PATH, "none")
    slow = FolderSpeeds().speed(header, PLAN, Machine(SLOW, SLOW))
    packed = FolderSpeeds().speed(read_folder(HF_PATH, "bnb-4bit"), PLAN, Machine(SLOW, SLOW))
    assert slow is not None
    assert packed is not None

    matrices = sum(4 * t.n_elements for t in header.tensors if len(t.shape) == 2)
    tied = header.config.get("tie_word_embeddings") is True
    embedding = 0 if tied else next(4 * t.n_elements for t in header.tensors if "embed" in t.name)
    assert slow.token_s == pytest.approx((matrices - embedding) / 1e9, rel=0.05)
    assert packed.token_s > slow.token_s  # an eighth of the bytes at a tenth of the rate, and a head in 16 bits
    assert FolderSpeeds().speed(header, EncoderPlan(512), Machine(SLOW, SLOW)) is None
    assert list(FolderSpeeds().alike(header, None, PLAN, lambda _: True)) == []  # type: ignore[arg-type]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("backend", "kinds"), [("gguf", {"Q4_K", "Q6_K", "F16"}), ("bnb", {"f32", "bf16", "nf4", "int8"})]
)
async def test_this_machine_is_measured(backend: str, kinds: set[str]) -> None:
    speeds: GgufSpeeds | FolderSpeeds = GgufSpeeds() if backend == "gguf" else FolderSpeeds()
    machine = await rates.ask(speeds.program, within_s=100)

    assert machine is not None
    assert machine.device is None
    for told in (machine.host, machine.host_alone):
        assert kinds <= told.weights.keys()
        assert kinds & {"Q4_K", "Q6_K", "F16"} <= told.streamed.keys()
        figures = [
            *told.weights.values(),
            *told.streamed.values(),
            *told.batches.values(),
            *told.attention.values(),
            told.memory,
        ]
        assert all(1e6 < figure < 1e15 for figure in figures)
        assert all(0 <= seconds < 0.1 for seconds in (*told.rows.values(), told.matrix_s, told.node_s, told.graph_s))
    if isinstance(speeds, GgufSpeeds):
        path = built_in_path("demo")
        assert path is not None
        speed = speeds.speed(read_file(Path(path)), PLAN, machine)
    else:
        speed = speeds.speed(read_folder(HF_PATH, "none"), PLAN, machine)
    assert speed is not None
    assert 10 < speed.decode_per_s() < 10_000
    assert speed.decode_per_s(2048) < speed.decode_per_s(0)


@pytest.mark.engine
@pytest.mark.parametrize("kind", sorted(FACTORS))
def test_products_are_measured_with_blocks_whose_factors_differ(kind: str) -> None:
    """As those of a model do: with equal ones a table of them would never leave the first cache."""
    blocks = blocks_of(kind)

    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 1e4
    for place in FACTORS[kind]:
        factors = np.ascontiguousarray(blocks.reshape(N_BLOCKS, -1)[:, place : place + 2]).view(np.uint16)
        lines = np.unique(factors // 16)  # of 64 bytes, an entry has 4
        assert lines.size > 60
        spread = float(np.std(np.log(np.abs(factors.view(np.float16).astype(np.float32)))))
        assert 0.15 < spread < 0.35, "as in SmolLM2's layers: 0.17 to 0.32 by the type"


async def test_a_child_that_fails_leaves_speeds_unknown() -> None:
    assert await rates.ask("backends.gguf.no_such_module", within_s=60) is None
    assert await rates.ask("backends.gguf.rates", within_s=0.001) is None
