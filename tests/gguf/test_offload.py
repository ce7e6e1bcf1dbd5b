"""Experts and feed-forward weights in host memory: the plans, the bytes of either side, answers that stay the same."""

from __future__ import annotations

import ctypes
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import gguf
import llama_cpp
import msgspec
import numpy as np
import pytest

from backends.backend import HeaderError
from backends.gguf.arithmetic import card_weight_bytes, host_tensors, predict
from backends.gguf.context import Context
from backends.gguf.info import HeaderInfo, Tensor
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.machine import host
from backends.messages import GeneratorPlan
from backends.messages.plans import ALL_LAYERS
from backends.plan import Amount, Wish
from backends.registry import BACKENDS
from server.memory.placement import Placed, place
from server.scheduling.budget import Refused
from tests.models import shapes
from tests.pool.test_memory import machine

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GIB = 2**30
MOE = replace(shapes.SHAPES["qwen3moe"], n_experts=64, n_experts_used=8, n_ff=64)
ON_CARD = Wish(None, 2, "f16", None, "cuda", frozenset({"parallel", "kv_type"}))
CARD = Amount(12 * GIB, 32 * GIB)


def header_of(arch: str, sizes: dict[str, int], tensors: dict[str, int], *, n_vocab: int) -> HeaderInfo:
    """A model of the Q4_K_M bytes of its matrices, `tensors`: name with `{}` for the layer -> weights in it."""
    n_layers = sizes["block_count"]
    names = {
        "token_embd.weight": sizes["embedding_length"] * n_vocab,
        "output.weight": sizes["embedding_length"] * n_vocab,
        **{f"blk.{layer}.{name}.weight": n for layer in range(n_layers) for name, n in tensors.items()},
    }
    return HeaderInfo(
        architecture=arch,
        file_bytes=0,
        metadata={f"{arch}.{key}": value for key, value in sizes.items()},
        array_lengths={"tokenizer.ggml.tokens": n_vocab},
        longest_token_bytes=8,
        tensors=tuple(Tensor(name, (n // 2048, 2048), "Q4_K", n * 9 // 16) for name, n in names.items()),
    )


def dense(n_layers: int, width: int, n_ff: int, heads: int) -> HeaderInfo:
    sizes = {
        "block_count": n_layers, "context_length": 40960, "embedding_length": width, "feed_forward_length": n_ff,
        "attention.head_count": heads, "attention.head_count_kv": 8,
    }  # fmt: skip
    matrices = {"attn_q": width * width, "attn_k": width * 1024, "attn_v": width * 1024, "attn_output": width * width}
    feed_forward = dict.fromkeys(("ffn_up", "ffn_gate", "ffn_down"), width * n_ff)
    return header_of("llama", sizes, {**matrices, **feed_forward}, n_vocab=151_936)


def moe(n_layers: int, width: int, n_ff: int, n_experts: int, used: int) -> HeaderInfo:
    sizes = {
        "block_count": n_layers, "context_length": 262_144, "embedding_length": width, "feed_forward_length": n_ff,
        "expert_feed_forward_length": n_ff, "expert_count": n_experts, "expert_used_count": used,
        "attention.head_count": 32, "attention.head_count_kv": 4, "attention.key_length": 128,
        "attention.value_length": 128,
    }  # fmt: skip
    experts = dict.fromkeys(("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"), width * n_ff * n_experts)
    matrices = {"attn_q": width * 4096, "attn_k": width * 512, "attn_v": width * 512, "attn_output": width * 4096}
    return header_of("qwen3moe", sizes, {**matrices, **experts}, n_vocab=151_936)


QWEN3_30B = moe(48, 2048, 768, 128, 8)
GPT_OSS_20B = moe(24, 2880, 2880, 32, 4)
DENSE_14B = dense(40, 5120, 17_408, 40)
DENSE_24B = dense(40, 6144, 24_576, 48)
DENSE_70B = dense(80, 8192, 28_672, 64)


def placed(header: HeaderInfo, room: Amount = CARD, wish: Wish = ON_CARD) -> GeneratorPlan:
    found = place("m", header, wish, budget=room, free=room)
    assert isinstance(found, Placed), found.message
    assert found.footprint.amount.within(room)
    assert isinstance(found.plan, GeneratorPlan)
    return found.plan


@pytest.mark.parametrize("header", [QWEN3_30B, GPT_OSS_20B], ids=["30B-A3B", "20B"])
def test_experts_leave_the_card_before_the_context_gets_shorter(header: HeaderInfo) -> None:
    plan = placed(header)

    if header is QWEN3_30B:
        assert 0 < plan.expert_layers < header.n_layers
    assert (plan.context, plan.gpu_layers, plan.ffn_layers) == (8192, ALL_LAYERS, 0)
    if plan.expert_layers:
        fewer = predict(header, GeneratorPlan(plan.context, plan.parallel, plan.kv_type, device="cuda",
                                              expert_layers=plan.expert_layers - 1))  # fmt: skip
        assert not fewer.amount.within(CARD)


def test_a_dense_model_moves_feed_forward_weights_before_whole_layers() -> None:
    assert placed(DENSE_14B).ffn_layers == 0
    plan = placed(DENSE_24B)

    assert plan.ffn_layers > 0
    assert plan.gpu_layers == ALL_LAYERS


def test_whole_layers_are_the_last_resort() -> None:
    plan = placed(DENSE_70B, Amount(5 * GIB, 64 * GIB))

    assert 0 < plan.gpu_layers <= DENSE_70B.n_layers
    assert plan.ffn_layers == DENSE_70B.n_layers


def test_what_the_host_cannot_hold_either_is_refused_with_both_sums() -> None:
    small = Amount(4 * GIB, 6 * GIB)
    refused = place("m", QWEN3_30B, ON_CARD, budget=small, free=small)

    assert isinstance(refused, Refused)
    assert refused.code == "cannot_fit"
    assert "on the card and" in refused.message
    assert "usable" in refused.message


def test_a_limit_below_the_memory_of_the_machine_is_what_experts_have(tmp_path: Path) -> None:
    """A container or a service: the card is large enough for the rest of the model, the machine for its experts."""
    gib = {"sys/fs/cgroup/memory.max": f"{8 * GIB}\n", "sys/fs/cgroup/memory.current": f"{GIB}\n"}
    free, limited = (
        Amount(4 * GIB, host.available_bytes(machine(tmp_path / name, available_kib=64 * 2**20, files=files)))
        for name, files in (("free", {}), ("limited", gib))
    )

    assert placed(QWEN3_30B, free).expert_layers > 0
    assert limited.host == 7 * GIB
    refused = place("m", QWEN3_30B, ON_CARD, budget=limited, free=limited)
    assert isinstance(refused, Refused)
    assert refused.code == "cannot_fit"
    assert "and 7 GiB of host memory usable" in refused.message


def test_no_byte_of_the_weights_is_lost_between_the_memories() -> None:
    each = {tensor.name: tensor.n_bytes for tensor in QWEN3_30B.tensors}
    whole = card_weight_bytes(QWEN3_30B, GeneratorPlan(8192, 1, device="cuda"))
    for n in (0, 1, 47, 48):
        plan = GeneratorPlan(8192, 1, device="cuda", expert_layers=n)
        kept = sum(n_bytes for name, n_bytes in each.items() if "_exps" in name and int(name.split(".")[1]) < n)
        footprint = predict(QWEN3_30B, plan)
        assert footprint.device.weights == whole - kept
        assert footprint.host.weights + footprint.device.weights == QWEN3_30B.weight_bytes
    assert host_tensors(GeneratorPlan(8192, 1, device="cpu", expert_layers=9)) is None


def test_what_the_operator_has_said_is_kept() -> None:
    assert placed(replace(QWEN3_30B, expert_layers=40)).expert_layers == 40
    none = replace(QWEN3_30B, expert_layers=0)
    assert placed(none).expert_layers == 0
    on_cpu = replace(ON_CARD, device="cpu")
    assert placed(replace(QWEN3_30B, expert_layers=40), Amount(host=64 * GIB), on_cpu).expert_layers == 0


@pytest.mark.parametrize("header", [QWEN3_30B, DENSE_14B, DENSE_70B], ids=["30B-A3B", "14B", "70B"])
def test_the_plans_of_large_files_are_few_enough_to_be_asked_at_once(header: HeaderInfo) -> None:
    plans = list(BACKENDS["gguf"].plans(header, ON_CARD))

    assert len(plans) == len(set(plans)) < 400
    began = time.process_time()
    placed(header, Amount(12 * GIB, 64 * GIB))
    assert time.process_time() - began < 20  # 2 s on a machine with nothing else to do


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ("llama", {"expert_layers": 1}, "no layer of this model has experts"),
        ("moe", {"expert_layers": 5}, "4 layers of this model have experts, and expert_layers = 5"),
        ("moe", {"ffn_layers": 1}, "no layer of this model has feed-forward weights"),
        ("llama", {"ffn_layers": 99}, "4 layers of this model have feed-forward weights"),
    ],
)
def test_layers_that_are_not_there_are_refused(tmp_path: Path, shape: str, options: dict[str, int], words: str) -> None:
    path = shapes.build(tmp_path / "m.gguf", MOE if shape == "moe" else shapes.LLAMA)

    with pytest.raises(HeaderError, match=words):
        BACKENDS["gguf"].describe(path, options)
    zero = dict.fromkeys(options, 0)
    described = BACKENDS["gguf"].describe(path, zero)
    assert [getattr(described, key) for key in zero] == [0]


def with_numbers(path: Path) -> Path:
    """The same file with random weights in place of zeros."""
    numbers = np.random.default_rng(1)
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        tensor.data[...] = numbers.standard_normal(tensor.data.shape).astype(tensor.data.dtype) / 8
    reader.data.flush()
    return path


@pytest.mark.engine
@pytest.mark.parametrize(("kind", "n_layers"), [("expert_layers", 1), ("expert_layers", 4), ("ffn_layers", 3)])
def test_the_library_keeps_the_bytes_that_were_planned(tmp_path: Path, kind: str, n_layers: int) -> None:
    """Of either budget, by the names that llama.cpp itself says it keeps: device and host are one processor here."""
    path = shapes.build(tmp_path / "m.gguf", MOE if kind == "expert_layers" else shapes.LLAMA)
    header = BACKENDS["gguf"].describe(path, {})
    on_card = GeneratorPlan(256, 1, device="cuda")
    plan = msgspec.structs.replace(on_card, **{kind: n_layers})
    whole, split = predict(header, on_card), predict(header, plan)
    log, lines = LibraryLog(), []
    listen = llama_cpp.llama_log_callback(lambda _level, text, _: lines.append(text.decode()))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))

    Model(path, gpu_layers=0, log=log, host_tensors=plan.host_tensors).close()

    log.install()
    kept = {word for line in lines if "buffer type overridden" in line for word in line.split() if "blk." in word}
    kept_bytes = sum(tensor.n_bytes for tensor in header.tensors if tensor.name in kept)
    assert kept_bytes > 0
    assert split.host.weights - whole.host.weights == kept_bytes
    assert whole.device.weights - split.device.weights == kept_bytes


def logits(path: Path, host: tuple[str, ...], log: LibraryLog) -> tuple[NDArray[np.float32], int]:
    """Of the last of some tokens, and how many weights llama.cpp was told to keep."""
    lines: list[bytes] = []
    listen = llama_cpp.llama_log_callback(lambda _level, text, _: lines.append(text))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    model = Model(path, gpu_layers=0, log=log, host_tensors=host)
    context = Context(
        model, context=256, parallel=1, kv_type="f16", max_batch=32, n_threads=1, log=log, layout="split", kv_tokens=0,
        copies_cells=False, fewer_threads=False,
    )  # fmt: skip
    n = 24
    context.tokens[:n] = np.arange(n) + 40
    context.positions[:n], context.sequences[:n], context.outputs[:n] = np.arange(n), 0, 0
    context.outputs[n - 1] = 1
    assert context.decode(n) == 0
    found = context.logits(1).copy()
    n_kept = sum(b"buffer type overridden" in line for line in lines)
    context.close()
    model.close()
    log.install()
    return found, n_kept


@pytest.mark.engine
def test_a_model_whose_experts_lie_elsewhere_says_the_same(tmp_path: Path) -> None:
    path = with_numbers(shapes.build(tmp_path / "moe.gguf", MOE))
    log = LibraryLog()
    log.install()
    plan = GeneratorPlan(256, 1, device="cuda", expert_layers=3)

    plain, none = logits(path, (), log)
    kept, some = logits(path, plan.host_tensors, log)

    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(kept, plain, rtol=1e-3, atol=1e-3)
    assert (none, some) == (0, 9)
