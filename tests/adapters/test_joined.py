"""Joined layers of a model on a processor, and what they leave behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.bnb import lora, lora_groups
from backends.files.lora_folder import LoraFolder, LoraPair
from backends.files.tensors import StoredTensor
from backends.pytorch.joined import JoinedLayers
from backends.pytorch.linear import PackedLinear, can_pack

N_BLOCKS, IN, OUT, RANK = 4, 8, 8, 2


class Block(torch.nn.Module):
    """Of a model: projections that are named as if they shared their input."""

    def __init__(self, dtype: torch.dtype, **inputs: int) -> None:
        super().__init__()
        for name, n_inputs in inputs.items():
            self.add_module(name, PackedLinear(torch.randn(OUT, n_inputs).to(dtype), None))


class Model(torch.nn.Module):
    """Blocks without a head."""

    def __init__(self, dtype: torch.dtype = torch.float32, **inputs: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(dtype, **inputs) for _ in range(N_BLOCKS))

    def get_output_embeddings(self) -> None:
        """None."""


def matrix(*shape: int) -> StoredTensor:
    """One side of a pair."""
    return StoredTensor("m", shape, "F32", 4 * shape[0] * shape[1])


def adapted(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rank: int = RANK,
    dtype: torch.dtype = torch.float32,
    **inputs: int,
) -> lora.LoraAdapters:
    """With one adapter of random matrices for these layers of every block."""
    monkeypatch.setattr(lora, "read_floats", lambda _, one: torch.randn(one.shape).numpy())
    layers = {f"blocks.{number}.{name}": n for number in range(N_BLOCKS) for name, n in inputs.items()}
    pairs = tuple(LoraPair(layer, matrix(rank, n), matrix(OUT, rank), 1.0) for layer, n in layers.items())
    loaded = lora.LoraAdapters(model, device=torch.device("cpu"), dtype=dtype)
    loaded.add(LoraFolder(Path("pirate"), pairs))
    loaded.attach()
    return loaded


def test_layers_that_come_apart_are_not_all_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given four blocks with joined layers, when an adapter is taken out, then one block at most is there twice."""
    model = Model(gate_proj=IN, up_proj=IN)
    before = {name: layer.unpacked()[0] for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    loaded = adapted(model, monkeypatch, up_proj=IN)
    alive = [weakref.ref(layer) for layer in model.modules() if isinstance(layer, JoinedLayers)]
    there: list[int] = []
    apart = JoinedLayers.apart

    def counted(joined: JoinedLayers) -> list[PackedLinear]:
        gc.collect()
        there.append(sum(one() is not None for one in alive))
        return apart(joined)

    monkeypatch.setattr(JoinedLayers, "apart", counted)
    loaded.detach()

    assert there == [4, 3, 2, 1], "alive before each"
    after = {name: layer.unpacked()[0] for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("hooked", [False, True])
def test_nothing_that_a_pass_computes_outlives_it(monkeypatch: pytest.MonkeyPatch, hooked: bool) -> None:
    """The last layers of a model have none behind them to take their outputs' place."""
    if hooked:
        monkeypatch.setattr(lora_groups, "_may_join", lambda *_: False)
    model = Model(gate_proj=IN, up_proj=IN)
    loaded = adapted(model, monkeypatch, gate_proj=IN, up_proj=IN)
    loaded.choose(np.array([0, 0, -1]), np.arange(3))
    gate, up = (model.get_submodule(f"blocks.{N_BLOCKS - 1}.{name}") for name in ("gate_proj", "up_proj"))
    x = torch.randn(3, IN)
    outputs = [gate(x)]
    alive = [weakref.ref(outputs[0].untyped_storage()), weakref.ref(x)]
    assert isinstance(gate, PackedLinear) is hooked
    if not hooked:
        outputs.append(up(x))
    else:  # one that is not asked for what was begun for it
        loaded.rest()

    del outputs, x
    assert [one() for one in alive] == [None, None]


def test_layers_of_unlike_widths_are_not_joined_and_have_exact_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the query comes from one place, and key and value from another."""
    inputs = {"q_proj": IN, "k_proj": 3 * IN, "v_proj": 3 * IN}
    model = Model(torch.float32, **inputs)
    x = {name: torch.randn(3, n) for name, n in inputs.items()}
    before = {name: model.get_submodule(f"blocks.1.{name}")(x[name]) for name in inputs}

    loaded = adapted(model, monkeypatch, dtype=torch.float32, **inputs)
    loaded.choose(np.array([-1, 0, -1]), np.arange(3))

    pairs = {pair.layer: (a, b) for pair, a, b in loaded._folders[0]}
    for name, rows in x.items():
        a, b = pairs[f"blocks.1.{name}"]
        made = model.get_submodule(f"blocks.1.{name}")(rows)
        assert torch.equal(made[[0, 2]], before[name][[0, 2]])
        assert torch.allclose(made[1], before[name][1] + rows[1] @ a.T @ b.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_inputs", [1000, 1024, 2048, 3072])
def test_rows_of_the_base_keep_every_bit_at_any_width(
    monkeypatch: pytest.MonkeyPatch, n_inputs: int, dtype: torch.dtype
) -> None:
    """oneDNN adds up to 1024 products in one block, and so are those of layers that have 1000 inputs and 48 columns."""
    if not can_pack(dtype):
        pytest.skip(f"this processor has no packed {dtype}")
    model, n_threads = Model(dtype, gate_proj=n_inputs, up_proj=n_inputs), torch.get_num_threads()
    x = {n: torch.randn(n, n_inputs).to(dtype) for n in (1, 2, 7, 40)}
    layers = [
        (f"blocks.{block}.{name}", n) for block in range(N_BLOCKS) for name in ("gate_proj", "up_proj") for n in x
    ]
    before = {(layer, n): model.get_submodule(layer)(x[n]) for layer, n in layers}
    loaded = adapted(model, monkeypatch, rank=24, dtype=dtype, gate_proj=n_inputs, up_proj=n_inputs)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for layer, n in layers:
                loaded.choose(np.where(np.arange(n) % 2, 0, -1), np.arange(n))
                assert torch.equal(model.get_submodule(layer)(x[n])[::2], before[layer, n][::2]), (layer, n, threads)
    finally:
        torch.set_num_threads(n_threads)
    assert isinstance(model.get_submodule("blocks.0.up_proj"), PackedLinear) is (n_inputs in (1000, 1024))


def test_layers_whose_sums_would_change_on_this_processor_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given another processor's rule, then the load sees it."""
    monkeypatch.setattr(lora_groups, "_ONE_SUM", 0)
    model = Model(gate_proj=1024, up_proj=1024)
    before = model.get_submodule("blocks.0.up_proj")(torch.ones(2, 1024))

    adapted(model, monkeypatch, up_proj=1024)

    assert torch.equal(model.get_submodule("blocks.0.up_proj")(torch.ones(2, 1024)), before)
