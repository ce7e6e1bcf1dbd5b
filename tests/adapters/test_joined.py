"""Joined layers of a model on a processor, and what they leave behind."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from backends.bnb import lora
from backends.files.lora_folder import LoraFolder, LoraPair
from backends.files.tensors import StoredTensor
from backends.pytorch.joined import JoinedLayers
from backends.pytorch.linear import PackedLinear

N_BLOCKS, IN, OUT, RANK = 4, 8, 8, 2


class Block(torch.nn.Module):
    """Of a model: projections that are named as if they shared their input."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("gate_proj", "up_proj"):
            self.add_module(name, PackedLinear(torch.randn(OUT, IN), None))


class Model(torch.nn.Module):
    """Blocks without a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(N_BLOCKS))

    def get_output_embeddings(self) -> None:
        """None."""


def matrix(*shape: int) -> StoredTensor:
    """One side of a pair."""
    return StoredTensor("m", shape, "F32", 4 * shape[0] * shape[1])


def test_layers_that_come_apart_are_not_all_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given four blocks with joined layers, when an adapter is taken out, then one block at most is there twice."""
    model = Model()
    before = {name: layer.unpacked()[0] for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    monkeypatch.setattr(lora, "read_floats", lambda _, one: torch.randn(one.shape).numpy())
    layers = [f"blocks.{number}.up_proj" for number in range(N_BLOCKS)]
    pairs = tuple(LoraPair(layer, matrix(RANK, IN), matrix(OUT, RANK), 1.0) for layer in layers)
    loaded = lora.LoraAdapters(model, device=torch.device("cpu"), dtype=torch.float32)
    loaded.add(LoraFolder(Path("pirate"), pairs))
    loaded.attach()
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
