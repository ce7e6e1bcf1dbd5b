"""What a GGUF model takes, computed from its header as llama.cpp computes it: at once, without a process.

Weights and caches are exact for plain decoders, also with sliding windows, experts and recurrent layers. Compute
buffers are fitted from above. A dry load (`backends.gguf.dryrun`) is exact for everything; tests hold the two together.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, assert_never

from backends.files import adapters
from backends.gguf.info import ENCODERS
from backends.gguf.passes import batch_tokens, input_limit, pass_tokens
from backends.kv_types import KV_BYTES, keys_and_values
from backends.messages import EncoderPlan, GeneratorPlan
from backends.messages.plans import ALL_LAYERS, whole_blocks
from backends.plan import BATCH_TOKENS, CONSTRAINT_BYTES, RUNTIME_BYTES, SCORED_ROWS, Footprint, Parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.gguf.info import HeaderInfo, Tensor
    from backends.messages import TextPlan

WINDOW_EVERY: Final[Mapping[str, int]] = MappingProxyType(
    {
        "gemma2": 2,
        "gemma3": 6,
        "gemma3n": 5,
        "cohere2": 4,
        "olmo2": 4,
        "gpt-oss": 2,
        "exaone4": 4,
        "smallthinker": 4,
        "llama4": 4,
    }
)
"""Architectures whose files need not say which layers have a window: every n-th has none, the others do."""
_DEFAULT_WINDOW: Final[Mapping[str, int]] = MappingProxyType({"gemma2": 4096, "llama4": 8192})
_FIRST_WITHOUT_CACHE: Final[Mapping[str, int]] = MappingProxyType({"gemma3n": 20})
"""Layers from this on use the cache of an earlier one."""
_VOCABULARY_BYTES: Final = 200
"""Host memory per token of the vocabulary: its text, its score, and the tables that find it; measured."""
_FLOAT_BYTES: Final = 4


def predict(header: HeaderInfo, plan: TextPlan) -> Footprint:
    """What a plan takes of either memory."""
    match plan:
        case GeneratorPlan():
            return _predict_generator(header, plan)
        case EncoderPlan():
            return _predict_pooled(header, plan)
        case _:
            assert_never(plan)


def _predict_generator(header: HeaderInfo, plan: GeneratorPlan) -> Footprint:
    of_text = _with_projector(header, plan, _predict_reader(header, plan))
    return _with_adapters(header, plan, _with_draft(header, plan, of_text))


def _with_draft(header: HeaderInfo, plan: GeneratorPlan, alone: Footprint) -> Footprint:
    """The same with the model that drafts for it, but for the process, which both share."""
    if header.mtp:
        own = cache_bytes(header, plan) // max(1, header.n_layers) + compute_bytes(header, plan)
        if plan.device == "cpu":
            return replace(alone, host=replace(alone.host, further={"draft": own}))
        return replace(alone, device=replace(alone.device, further={"draft": own}))
    if header.draft is None:
        return alone
    of_draft = _predict_reader(header.draft, plan.of_draft(header.draft.n_ctx_train))
    process = RUNTIME_BYTES[plan.device]
    host = of_draft.host.total_bytes - process.host - header.draft.n_vocab * CONSTRAINT_BYTES
    on_host = replace(alone.host, further={"draft": host})
    if plan.device == "cpu":
        return replace(alone, host=on_host)
    device = replace(alone.device, further={"draft": of_draft.device.total_bytes - process.device})
    return Footprint(device=device, host=on_host)


def _with_adapters(header: HeaderInfo, plan: GeneratorPlan, alone: Footprint) -> Footprint:
    """The same with its adapters, each of whose pairs lies where the matrix lies that it changes: as its layers do."""
    served = adapters.served(header.adapters)
    if not served:
        return alone
    n_bytes = sum(adapter.n_bytes for adapter in served)
    on_card = math.ceil(n_bytes * card_share(header, plan))
    host = replace(alone.host, further={**alone.host.further, adapters.KEY: n_bytes - on_card})
    if plan.device == "cpu":
        return replace(alone, host=host)
    return Footprint(replace(alone.device, further={**alone.device.further, adapters.KEY: on_card}), host)


def _with_projector(header: HeaderInfo, plan: GeneratorPlan, of_text: Footprint) -> Footprint:
    """The same with its eyes and ears, which are where the model computes; media on their way are in host memory."""
    projector = header.projector
    if projector is None or not projector.kinds:
        return of_text
    n_bytes = projector.n_bytes + projector.encoder_bytes
    on_way = projector.kept_bytes(header.number("embedding_length")) + projector.way_bytes
    if plan.device == "cpu":
        return replace(of_text, host=replace(of_text.host, projector=n_bytes + on_way))
    host = replace(of_text.host, projector=on_way)
    return Footprint(device=replace(of_text.device, projector=n_bytes), host=host)


def _predict_reader(header: HeaderInfo, plan: GeneratorPlan) -> Footprint:
    cache = cache_bytes(header, plan) + state_bytes(header, plan)
    constraints = header.n_vocab * CONSTRAINT_BYTES
    return _footprint(
        header,
        plan,
        cache,
        compute_bytes(header, plan) + _visiting_bytes(header, plan),
        host_compute_bytes(header, plan),
        beside=constraints,
    )


def _predict_pooled(header: HeaderInfo, plan: EncoderPlan) -> Footprint:
    """An embedding model or a reranker: no cells but those of a pass, and an output per token of the largest one."""
    limit = input_limit(plan.context, header.n_ctx_train)
    batch = batch_tokens(limit, pass_tokens(plan.gpu_layers), in_pieces=header.tells_at_the_end)
    one = GeneratorPlan(max(limit, batch), 1, gpu_layers=plan.gpu_layers, device=plan.device)
    kv = 0 if header.architecture in ENCODERS else cache_bytes(header, one, with_windows=False)
    graph = batch * (_activations(header) * _FLOAT_BYTES + one.cells_each * 2) + 2**16
    output = batch * (header.n_vocab + header.number("embedding_length")) * _FLOAT_BYTES
    if plan.device == "cpu":
        return _footprint(header, plan, kv, graph + output, 0)
    inputs = batch * (header.number("embedding_length") * _FLOAT_BYTES + one.cells_each * _FLOAT_BYTES)
    return _footprint(header, plan, kv, graph, output + (inputs if _all_on_card(header, plan) else graph))


def _footprint(
    header: HeaderInfo, plan: TextPlan, cache: int, compute: int, host_compute: int, *, beside: int = 0
) -> Footprint:
    """Layers that are not on the card lie in host memory with their cache; so do the vocabulary and `beside`."""
    runtime = RUNTIME_BYTES[plan.device]
    host_runtime = runtime.host + header.n_vocab * _VOCABULARY_BYTES + beside
    if plan.device == "cpu":
        return Footprint(host=Parts(header.weight_bytes, cache, compute, host_runtime))
    share = cache_share(header, plan)
    return Footprint(
        device=Parts(card_weight_bytes(header, plan), math.ceil(cache * share), compute, runtime.device),
        host=Parts(host_weight_bytes(header, plan), math.ceil(cache * (1 - share)), host_compute, host_runtime),
    )


def card_share(header: HeaderInfo, plan: TextPlan) -> float:
    """The part of the transformer blocks that lies on the card."""
    if plan.device == "cpu":
        return 0.0
    if plan.gpu_layers == ALL_LAYERS or header.n_layers == 0:
        return 1.0
    blocks = min(max(plan.gpu_layers - 1, 0), header.n_layers)  # the output layer is the first to go there
    return blocks / header.n_layers


def cache_share(header: HeaderInfo, plan: TextPlan) -> float:
    """The part of the cache that lies on the card: that of its layers, unless it is kept in host memory."""
    return 0.0 if isinstance(plan, GeneratorPlan) and plan.kv_on_host else card_share(header, plan)


def _all_on_card(header: HeaderInfo, plan: TextPlan) -> bool:
    return plan.gpu_layers == ALL_LAYERS or plan.gpu_layers > header.n_layers


def card_weight_bytes(header: HeaderInfo, plan: TextPlan) -> int:
    """Of the tensors that lie on the card."""
    return sum(tensor.n_bytes for tensor in card_tensors(header, plan))


def card_tensors(header: HeaderInfo, plan: TextPlan) -> Iterator[Tensor]:
    """The tensors that lie on the card."""
    if plan.device == "cpu":
        return
    on_gpu = header.n_layers + 1 if plan.gpu_layers == ALL_LAYERS else plan.gpu_layers
    first = header.n_layers - on_gpu + 1  # llama.cpp offloads the last layers first, and the output before any
    everything = on_gpu > header.n_layers
    has_output = header.has_output
    stays = host_tensors(plan)
    for tensor, layer in zip(header.tensors, header.layer_of, strict=True):
        if layer is not None:
            on_card = everything or layer >= first
        else:
            on_card = on_gpu > 0 and not (has_output and tensor.name.startswith("token_embd."))
        if on_card and (stays is None or layer is None or not stays.search(tensor.name)):
            yield tensor


def host_tensors(plan: TextPlan) -> re.Pattern[str] | None:
    """The names of weights that are kept from the card; None where there are none."""
    patterns = plan.host_tensors if isinstance(plan, GeneratorPlan) else ()
    return re.compile("|".join(patterns)) if patterns else None


def _visiting_bytes(header: HeaderInfo, plan: TextPlan) -> int:
    """A long batch is computed on the card, where weights of the host come layer by layer: those of the largest one."""
    stays = host_tensors(plan)
    if stays is None:
        return 0
    layers: dict[str, int] = {}
    for tensor in header.tensors:
        if stays.search(tensor.name):
            layer = tensor.name.split(".", 2)[1]
            layers[layer] = layers.get(layer, 0) + tensor.n_bytes
    return max(layers.values(), default=0)


def host_weight_bytes(header: HeaderInfo, plan: TextPlan) -> int:
    """Beside a card: the layers that are not on it, and the input embedding, which is always here.

    An embedding that is tied to the output lies in both memories.
    """
    embedding = sum(tensor.n_bytes for tensor in header.tensors if tensor.name.startswith("token_embd"))
    tied = plan.gpu_layers != 0 and not header.has_output
    return header.weight_bytes - card_weight_bytes(header, plan) + (embedding if tied else 0)


def cache_bytes(header: HeaderInfo, plan: GeneratorPlan, *, with_windows: bool = True) -> int:
    """Keys and values of every layer that has a cache of its own."""
    heads, windowed = kv_heads(header), windows(header) if with_windows else [False] * header.n_layers
    n_cached = header.n_layers - header.number("attention.shared_kv_layers")
    n_cached = min(n_cached, _FIRST_WITHOUT_CACHE.get(header.architecture, n_cached))
    full, short = header.head_sizes(), header.head_sizes("_swa")
    kinds = [KV_BYTES[kind] for kind in keys_and_values(plan.kv_type)]
    n_bytes = 0
    for layer in range(max(n_cached, 0)):
        size, cells = (short, _window_cells(header, plan)) if windowed[layer] else (full, plan.cells_seen)
        streams = plan.cells // plan.cells_seen
        values = [heads[layer] * n * cells * streams for n in size]
        n_bytes += sum(n // block * block_bytes for n, (block, block_bytes) in zip(values, kinds, strict=True))
    return n_bytes


def state_bytes(header: HeaderInfo, plan: GeneratorPlan) -> int:
    """The fixed state of recurrent layers, one per sequence, in float32."""
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    if not inner:
        return 0
    convolution = max(header.number("ssm.conv_kernel") - 1, 0) * (inner + 2 * header.number("ssm.group_count") * state)
    recurrent = sum(1 for heads in kv_heads(header) if heads == 0) or header.n_layers
    return recurrent * plan.parallel * (convolution + state * inner) * _FLOAT_BYTES


def compute_bytes(header: HeaderInfo, plan: GeneratorPlan) -> int:
    """Buffers of the largest graph: activations of one batch and the attention masks (f16), or logits; and the output.

    The factors are fitted from above to what llama.cpp reports with flash attention.
    """
    batch = max(BATCH_TOKENS, plan.parallel)
    embedding = header.number("embedding_length")
    floats = _activations(header)
    masks = plan.cells_seen
    if any(windows(header)):
        masks += _window_cells(header, plan)
        floats += _query_values(header) + max(kv_heads(header), default=0) * sum(header.head_sizes())
    n_outputs = plan.parallel + SCORED_ROWS
    logits = n_outputs * header.n_vocab * _FLOAT_BYTES
    graph = batch * (floats * _FLOAT_BYTES + masks * 2)
    kinds = zip(header.head_sizes(), keys_and_values(plan.kv_type), strict=True)
    copied = sum(size for size, kind in kinds if kind == "f32")
    graph += max(kv_heads(header), default=0) * copied * plan.cells * 2  # flash attention reads halves: of one layer
    behind_activations = logits + 2 * batch * embedding * _FLOAT_BYTES
    return max(graph, behind_activations) + logits + 2**16


def host_compute_bytes(header: HeaderInfo, plan: GeneratorPlan) -> int:
    """Beside a card: inputs, masks and outputs, which are copied to and fro; the whole graph where layers stay here."""
    if plan.device == "cpu":
        return 0
    if not _all_on_card(header, plan) or plan.host_tensors:
        return compute_bytes(header, plan)
    batch = max(BATCH_TOKENS, plan.parallel)
    inputs = batch * (header.number("embedding_length") + plan.cells_seen) * _FLOAT_BYTES
    attention = compute_bytes(header, plan) if plan.kv_on_host else 0  # the CPU attends; from above, not measured
    return inputs + attention + (plan.parallel + SCORED_ROWS) * header.n_vocab * _FLOAT_BYTES


def _activations(header: HeaderInfo) -> int:
    """Values that one token holds at once."""
    embedding, queries, ff = (
        header.number("embedding_length"),
        _query_values(header),
        header.number("feed_forward_length"),
    )
    floats = 2 * (embedding + queries + ff) + max(embedding, ff) + 8
    if used := header.number("expert_used_count"):
        expert = header.number("expert_feed_forward_length") or ff
        experts = used * (2 * expert + embedding) + 2 * header.number("expert_count")
        floats = max(floats, 6 * embedding + 2 * queries + experts)
    return floats


def _query_values(header: HeaderInfo) -> int:
    return max(header.number("attention.head_count", 1), 1) * max(header.head_sizes())


def windows(header: HeaderInfo) -> list[bool]:
    """Which layers attend to a sliding window only; where the header does not say, none: too much, never too little."""
    n_layers, arch = header.n_layers, header.architecture
    if not _window(header):
        return [False] * n_layers
    pattern = header.metadata.get(f"{arch}.attention.sliding_window_pattern", WINDOW_EVERY.get(arch, 1))
    if isinstance(pattern, list):
        flags = [bool(flag) for flag in pattern]
        return (flags + [False] * n_layers)[:n_layers]
    every = pattern if isinstance(pattern, int) else 1
    return [every != 1 and (every <= 0 or layer % every < every - 1) for layer in range(n_layers)]


def _window(header: HeaderInfo) -> int:
    return header.number("attention.sliding_window", _DEFAULT_WINDOW.get(header.architecture, 0))


def _window_cells(header: HeaderInfo, plan: GeneratorPlan) -> int:
    """Cells in a layer with a window, of one sequence or of a whole pool: the windows and one batch, rounded up."""
    windows = _window(header) * (plan.parallel if plan.kv_tokens else 1)
    cells = min(plan.cells_seen, windows + max(BATCH_TOKENS, plan.parallel))
    return whole_blocks(cells)


def kv_heads(header: HeaderInfo) -> list[int]:
    """Of each layer; 0 where it has no attention."""
    n_heads = max(header.number("attention.head_count", 1), 1)
    told = header.metadata.get(f"{header.architecture}.attention.head_count_kv", n_heads)
    if isinstance(told, list):
        heads = [max(0, n) if isinstance(n, int) else n_heads for n in told]
        return (heads + [max(heads, default=n_heads)] * header.n_layers)[: header.n_layers]
    return [max(0, told) if isinstance(told, int) else n_heads] * header.n_layers
