"""How fast a plan of a GGUF model computes, and where its weights could lie otherwise. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from backends.gguf import arithmetic
from backends.gguf.info import EXPERT_WEIGHTS
from backends.kv_types import keys_and_values
from backends.messages import GeneratorPlan
from backends.messages.plans import ALL_LAYERS
from backends.plan import BATCH_TOKENS
from backends.speed import GROUP, Speed, Work, speed_of

if TYPE_CHECKING:
    from backends.gguf.info import HeaderInfo, Tensor
    from backends.messages import TextPlan
    from backends.plan import Wish
    from backends.speed import Machine

TOY_BYTES: Final = 32 << 20
"""Models below it are computed by one thread (`backends.gguf.threads.sensible_threads`)."""
STEP_S, TOY_STEP_S = 250e-6, 50e-6
"""What the engine and its server add to a pass: the plan of the step, its arrays, its events. Measured with models of
93 MiB, and with the demo model, whose weights leave them in the caches.
"""
TOKEN_S: Final = 1.1e-10
"""What it adds for every token of the vocabulary, whose logits are searched; measured."""
LAYER_NODES: Final = 8
"""Operations of a layer beside its products and vectors: rotations of queries and keys, two writes to the cache,
attention, the gate and two additions. Counted of llama.cpp's graph for Llama.
"""
NORM_NODES: Final = 2
"""Of each vector that is a norm's: the norm, and the product with the vector. Another is added."""
ROUTER_NODES: Final = 6
"""Of a layer with experts beside those of any other: choosing them, and weighing what they say. With them come as many
additions as a token uses experts. Counted of llama.cpp's graph for Qwen3 MoE.
"""


class GgufSpeeds:
    """See `backends.speed.Speeds`."""

    program = "backends.gguf.rates"

    def speed(self, header: HeaderInfo, plan: TextPlan, machine: Machine) -> Speed | None:
        """Of a generator."""
        if not isinstance(plan, GeneratorPlan):
            return None
        host, device = works(header, plan)
        alone = plan.device == "cpu" and is_toy(header)
        return speed_of(
            host,
            device,
            machine,
            context=plan.context,
            batch=BATCH_TOKENS,
            step_s=(TOY_STEP_S if alone else STEP_S) + TOKEN_S * header.n_vocab,
            alone=alone,
        )

    def alike(
        self, header: HeaderInfo, wish: Wish, plan: TextPlan, fits: Callable[[TextPlan], bool]
    ) -> Iterator[TextPlan]:
        """The same shape with as few weights as possible kept from the card, in each of the ways there are."""
        if not isinstance(plan, GeneratorPlan) or wish.device == "cpu" or wish.gpu_layers is not None:
            return
        kept = {"expert_layers": header.expert_layers or 0, "ffn_layers": header.ffn_layers or 0}
        for whole in _moves(header, replace(plan, gpu_layers=ALL_LAYERS, **kept)):
            if (found := _least(whole, fits)) is not None and found != plan:
                yield found


def _moves(header: HeaderInfo, bare: GeneratorPlan) -> Iterator[list[GeneratorPlan]]:
    """Ways to lighten the card, each from the least to the most."""
    experts = (
        [bare]
        if header.expert_layers is not None
        else [replace(bare, expert_layers=n) for n in range(header.host_layers("expert_layers") + 1)]
    )
    if header.ffn_layers is None:
        feed_forward = range(header.host_layers("ffn_layers") + 1)
        yield [replace(bare, ffn_layers=n) for n in feed_forward]
        yield [*experts, *(replace(experts[-1], ffn_layers=n) for n in feed_forward)]
    else:
        yield experts
    yield [bare, *(replace(bare, gpu_layers=n) for n in range(header.n_layers, -1, -1))]


def _least(plans: list[GeneratorPlan], fits: Callable[[TextPlan], bool]) -> GeneratorPlan | None:
    """The first of them that fits, found by halves: each takes no more of the card than the one before."""
    low, high = 0, len(plans)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(plans[middle]) else (middle + 1, high)
    return plans[low] if low < len(plans) else None


def works(header: HeaderInfo, plan: GeneratorPlan) -> tuple[Work, Work]:
    """What the host and the card do for a token."""
    sides = (_Side(), _Side())
    on_card = {tensor.name for tensor in arithmetic.card_tensors(header, plan)}
    used = _share_used(header)
    for tensor in header.tensors:
        if tensor.name.startswith("token_embd") and header.has_output:
            continue  # one row of it
        sides[tensor.name in on_card].add(tensor, used if _is_expert(tensor) else 1.0)
    share = arithmetic.card_share(header, plan)
    cell_madds, cell_reads = _cell_madds(header)
    made = []
    attending = 0.0 if plan.kv_on_host else share
    reads = GROUP * cell_reads
    on_host = cell_madds if is_toy(header) else (cell_madds + reads) / 2
    attended = ((1 - attending, on_host), (attending, min(cell_madds, reads)))
    for side, part, (attends, madds) in zip(sides, (1 - share, share), attended, strict=True):
        made.append(
            Work(
                read=side.read,
                rows=side.rows,
                madds=side.madds,
                cell_madds=madds * attends,
                cell_batch_madds=cell_madds * attends,
                n_matrices=side.n_matrices,
                n_nodes=n_nodes(header) * part,
                resident_bytes=side.resident_bytes,
                cache=(*keys_and_values(plan.kv_type), header.head_sizes()[1]),
            )
        )
    return made[0], made[1]


def is_toy(header: HeaderInfo) -> bool:
    """One thread computes it, and all it has stays in the processor's caches."""
    return header.weight_bytes < TOY_BYTES


def n_nodes(header: HeaderInfo) -> int:
    """Operations of a pass over one token that are no products."""
    vectors = [tensor.name for tensor in header.tensors if len(tensor.shape) < 2]
    of_vectors = sum(NORM_NODES if "norm" in name else 1 for name in vectors)
    with_experts = len({tensor.name.split(".")[1] for tensor in header.tensors if _is_expert(tensor)})
    routing = with_experts * (ROUTER_NODES + header.number("expert_used_count"))
    return LAYER_NODES * header.n_layers + of_vectors + routing


class _Side:
    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.madds: Counter[str] = Counter()
        self.n_matrices = 0
        self.resident_bytes = 0

    def add(self, tensor: Tensor, used: float) -> None:
        """Vectors count as operations of their layer."""
        if len(tensor.shape) < 2:
            return
        self.n_matrices += 1
        self.resident_bytes += tensor.n_bytes
        self.read[tensor.type_name] += round(tensor.n_bytes * used)
        self.rows[tensor.type_name] += round(math.prod(tensor.shape[1:]) * used)
        if not tensor.name.startswith(("output.", "token_embd")):  # only the last token of a prompt has logits
            self.madds[tensor.type_name] += round(math.prod(tensor.shape) * used)


def _is_expert(tensor: Tensor) -> bool:
    return any(name in tensor.name for name in EXPERT_WEIGHTS)


def _share_used(header: HeaderInfo) -> float:
    """Of the experts by one token."""
    n_experts = header.number("expert_count")
    return min(1.0, header.number("expert_used_count") / n_experts) if n_experts else 1.0


def _cell_madds(header: HeaderInfo) -> tuple[float, float]:
    """Multiply-adds of attention that each token before adds to a decoded one, and the keys and values they read.

    Layers with a window are left out: what they read ends with it.
    """
    windowed = arithmetic.windows(header)
    heads = [n for n, short in zip(arithmetic.kv_heads(header), windowed, strict=True) if n and not short]
    n_queries = max(header.number("attention.head_count", 1), 1)
    size = sum(header.head_sizes())
    return float(len(heads) * n_queries * size), float(sum(heads) * size)
