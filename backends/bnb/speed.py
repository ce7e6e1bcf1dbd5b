"""How fast a plan of a Hugging Face folder computes. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from backends.bnb import arithmetic
from backends.kv_types import keys_and_values
from backends.messages import GeneratorPlan
from backends.plan import BATCH_TOKENS
from backends.speed import GROUP, Speed, Work, speed_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor
    from backends.messages import TextPlan
    from backends.plan import Wish
    from backends.speed import Machine

TOY_BYTES: Final = 32 << 20
"""Models below it are computed by one thread (`backends.bnb.loading.sensible_threads`)."""
STEP_S: Final = 300e-6
"""What the engine adds to a pass; measured with the demo model."""
TOKEN_S: Final = 9e-9
"""What it adds for every token of the vocabulary; measured."""
LAYER_NODES: Final = 90
"""Operations of a layer beside its products, with what Python does between them; measured with the demo model."""


class FolderSpeeds:
    """See `backends.speed.Speeds`."""

    program = "backends.bnb.rates"

    def speed(self, header: FolderInfo, plan: TextPlan, machine: Machine) -> Speed | None:
        """Of a generator; all of it is on one device."""
        if not isinstance(plan, GeneratorPlan):
            return None
        work, none = _work(header, plan), Work()
        on_card = plan.device == "cuda"
        return speed_of(
            none if on_card else work,
            work if on_card else none,
            machine,
            context=plan.context,
            batch=BATCH_TOKENS,
            step_s=STEP_S + TOKEN_S * header.n_vocab,
            alone=not on_card and header.file_bytes < TOY_BYTES,
        )

    def alike(
        self, header: FolderInfo, wish: Wish, plan: TextPlan, fits: Callable[[TextPlan], bool]
    ) -> Iterator[TextPlan]:
        """None: its weights lie where they are computed with."""
        yield from ()


def _work(folder: FolderInfo, plan: GeneratorPlan) -> Work:
    read: Counter[str] = Counter()
    madds: Counter[str] = Counter()
    n_matrices = 0
    tied = folder.config.get("tie_word_embeddings") is True
    for tensor in folder.tensors:
        is_embedding = any(part in tensor.name for part in ("embed", "wte", "wpe"))
        if len(tensor.shape) != 2 or (is_embedding and not (tied and "position" not in tensor.name)):
            continue
        kind = _kind(tensor, folder, plan)
        n_matrices += 1
        read[kind] += arithmetic.tensor_bytes(tensor, folder, plan.device)
        if not is_embedding and not tensor.name.startswith("lm_head"):
            madds[kind] += tensor.n_elements
    n_heads = max(folder.number("num_attention_heads", 1), 1)
    size = folder.number("head_dim") or folder.number("hidden_size") // n_heads
    queries = folder.n_layers * n_heads * 2 * size
    reads = folder.n_layers * folder.number("num_key_value_heads", n_heads) * 2 * size
    return Work(
        read=read,
        madds=madds,
        cell_madds=float(min(queries, GROUP * reads) if plan.device == "cuda" else queries),
        cell_batch_madds=float(queries),
        n_matrices=n_matrices,
        n_nodes=LAYER_NODES * folder.n_layers,
        resident_bytes=float(sum(read.values())),
        cache=(*keys_and_values(arithmetic.computed_type(folder, plan.device)), math.floor(size)),
    )


def _kind(tensor: StoredTensor, folder: FolderInfo, plan: GeneratorPlan) -> str:
    """As `backends.bnb.rates` names what it measures."""
    if arithmetic.is_linear(tensor, folder.quantization):
        if folder.quantization.get("load_in_4bit"):
            return "nf4"
        if folder.quantization.get("load_in_8bit"):
            return "int8"
    return arithmetic.computed_type(folder, plan.device)
