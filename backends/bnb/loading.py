"""From a `LoadModel` message to a running engine over transformers and bitsandbytes, with its `Ready`'s figures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})  # read when the libraries are imported

import accelerate  # noqa: F401 - transformers imports it while it loads, a template before
import numpy as np
import torch
import transformers.models.llama.modeling_llama
import transformers.quantizers.auto  # noqa: F401
from transformers import AutoTokenizer, conversion_mapping

from backends.backend import HeaderError
from backends.bnb import arithmetic, eyes, folder, tokenizer_file
from backends.bnb.attention import Survey, UnsupportedAttentionError
from backends.bnb.context import BnbContext
from backends.bnb.encoding import Source, load_encoder
from backends.bnb.header import read
from backends.bnb.joined_rows import JoinedRows
from backends.bnb.kv import KvCache, LayerShape
from backends.bnb.runner import Runner
from backends.bnb.sight import is_of_language
from backends.bnb.vocabulary import FolderVocabulary
from backends.bnb.weights import GENERATOR, Order, load_model, pin_positions, seer
from backends.engine import LoadError
from backends.generation.batching import Batcher
from backends.generation.engine import GeneratingEngine
from backends.generation.readiness import describe, making_guides, open_store
from backends.generation.speculation import told as speculation_told
from backends.generation.tokenizer import Tokenizer
from backends.machine import card
from backends.machine.crash_reason import in_words
from backends.messages import GeneratorPlan, Layers
from backends.plan import BATCH_TOKENS
from backends.pytorch import linear, shortage
from backends.pytorch.measure import host_parts_beside_card, runtime_bytes, version, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.bnb.header import FolderInfo
    from backends.engine import AnyEngine
    from backends.messages import LoadModel, TextPlan

conversion_mapping.get_checkpoint_conversion_mapping("")  # makes its table once, 0.15 s: a template has it before

_WARM_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"cpu": 32, "cuda": BATCH_TOKENS})
"""A card's allocator keeps what the longest pass took; on a processor that pass would only be a wait."""
_TOY_BYTES: Final = 32 << 20
_KV_TYPES: Final = ("f16", "bf16", "f32")


def load(spec: LoadModel, progress: Callable[[float], None]) -> AnyEngine:
    """Load the folder as `spec` says. Raises LoadError."""
    plan: TextPlan = spec.plan
    if isinstance(plan, GeneratorPlan) and plan.kv_type not in _KV_TYPES:
        raise LoadError(
            f"kv_type {plan.kv_type} is for GGUF models: a folder's cache has the type it computes in. "
            "hint: leave kv_type out"
        )
    if spec.plan.device == "cuda" and not torch.cuda.is_available():
        raise LoadError("this build of PyTorch sees no GPU. hint: install one with CUDA, or use device = 'cpu'")
    free_before = card.free_bytes() if spec.plan.device == "cuda" else None
    order = Order.of(spec.options)
    path = Path(spec.path)
    try:
        info = read(path, order.quantization, spec.options)
    except HeaderError as error:
        raise LoadError(str(error)) from error
    config = folder.check(path, trust_remote_code=order.trust_remote_code)
    source = _tokenizer(path, order)
    torch.set_num_threads(spec.threads or sensible_threads(info.file_bytes))
    if info.gives != "text":
        return load_encoder(Source(spec, config, info, order, source, free_before), progress)
    processor = eyes.processor_of(spec, info, source)
    model = load_model(spec, config, order, progress, GENERATOR if info.sight is None else seer(info.sight))
    pin_positions(model, plan.context)
    device = torch.device(spec.plan.device)
    if device.type == "cpu":
        linear.make_rows_independent(model, within=is_of_language if info.sight is not None else None)
    return _engine(spec, model, source, info, order, processor=processor, device=device, free_before=free_before)


def _engine(
    spec: LoadModel,
    model: Any,
    source: Any,
    info: FolderInfo,
    order: Order,
    *,
    processor: Any,
    device: torch.device,
    free_before: int | None,
) -> AnyEngine:
    plan = spec.plan
    assert isinstance(plan, GeneratorPlan)
    config = model.config.get_text_config()
    runner = Runner(model if info.sight is None else eyes.language_of(model), device=device)
    dtype = model.get_input_embeddings().weight.dtype
    vocabulary = FolderVocabulary(source, n_vocab=int(config.vocab_size), ends=_ends(model, source))
    tokenizer = Tokenizer(vocabulary)
    with making_guides(tokenizer):
        shapes = _survey(runner, config, spec)
        vocabulary.tower = eyes.open_for(spec, model, info, processor, tokenizer)
    try:
        cache = KvCache(
            shapes,
            n_rows=plan.parallel,
            context=plan.context,
            budget_cells=plan.cells,
            pass_tokens=BATCH_TOKENS,
            dtype=dtype,
            device=device,
        )
        joined = None if vocabulary.tower is None else JoinedRows()
        context = BnbContext(runner, cache, vocabulary=vocabulary, max_batch=BATCH_TOKENS, joined=joined)
        context.warm_up(_WARM_TOKENS[device.type])
        first_s = context.warm_up(1)
    except (RuntimeError, MemoryError) as error:
        if shortage.is_shortage(error):
            message = f"no memory is left for the KV cache: {shortage.told(error)}. hint: a smaller context or parallel"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"the model loads, but its first pass fails: {in_words(error)}") from error
    ready = describe(
        plan,
        tokenizer,
        n_ctx_train=info.n_ctx_train,
        n_vocab=vocabulary.n_vocab,
        layers=Layers(len(shapes) + 1 if device.type == "cuda" else 0, len(shapes) + 1),
        parts=_parts(spec, model, info, cache, free_before),
        host_parts=_host_parts(info) if device.type == "cuda" else {},
        engine=version(),
        speculation=speculation_told(spec.speculation, context),
        media=info.media,
    )
    batcher = Batcher(max_tokens=context.max_batch, max_itl_us=spec.max_itl_ms * 1000)
    batcher.pace.learn(n_decode=1, chunks=(), duration_us=1e6 * first_s)
    store, ready = open_store(spec.store, ready, identity=identity(spec, order, dtype))
    return GeneratingEngine(
        vocabulary, context, tokenizer, ready=ready, batcher=batcher, store=store, speculation=spec.speculation
    )


def _tokenizer(path: Path, order: Order) -> Any:
    """A fast tokenizer of transformers. Raises LoadError."""
    tokenizer_file.check(path)
    try:
        source = AutoTokenizer.from_pretrained(
            path, trust_remote_code=order.trust_remote_code, local_files_only=True, use_fast=True
        )
    except Exception as error:  # the parsers of strangers' files raise whatever they like
        raise LoadError(f"the folder's tokenizer cannot be read: {in_words(error)}") from error
    if not getattr(source, "is_fast", False):
        raise LoadError("the folder's tokenizer has no tokenizer.json, and none can be made of what is there")
    return source


def _survey(runner: Runner, config: Any, spec: LoadModel) -> list[LayerShape]:
    """What each layer asks of the cache, found by a pass at the last position. Raises LoadError."""
    survey = Survey()
    last = np.array([spec.plan.context - 1], dtype=np.int32)
    try:
        runner.forward(np.zeros(1, dtype=np.int32), last, np.zeros(1, dtype=np.intp), survey)
    except IndexError as error:
        limit = getattr(config, "max_position_embeddings", "fewer")
        raise LoadError(f"the model has {limit} positions, context = {spec.plan.context} asks for more") from error
    except UnsupportedAttentionError as error:
        raise LoadError(f"a {config.model_type} model cannot be served: {error}") from error
    except Exception as error:  # whatever an architecture does without a cache
        if shortage.is_shortage(error):
            message = f"no memory is left for a pass of one token: {shortage.told(error)}. hint: a smaller quantization"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"a {config.model_type} model cannot be served: {in_words(error)}") from error
    kinds = list(getattr(config, "layer_types", None) or [])
    n_layers = int(config.num_hidden_layers)
    strange = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if strange or sorted(survey.found) != list(range(n_layers)):
        what = f"layers of kind {', '.join(strange)}" if strange else "layers that don't attend in the usual way"
        raise LoadError(f"a {config.model_type} model has {what}, for which this backend has no cache")
    shapes = []
    for index in range(n_layers):
        seen = survey.found[index]
        slides = seen.window is None and index < len(kinds) and kinds[index] == "sliding_attention"
        window = int(config.sliding_window) if slides else seen.window
        shapes.append(LayerShape(seen.n_heads, seen.key_size, seen.value_size, window))
    return shapes


def _ends(model: Any, source: Any) -> set[int]:
    """Tokens that end a generation: the configurations' and the tokenizer's."""
    told = (
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        source.eos_token_id,
    )
    return {int(token) for one in told for token in (one if isinstance(one, list) else [one]) if token is not None}


def _parts(
    spec: LoadModel, model: Any, info: FolderInfo, cache: KvCache, free_before: int | None
) -> dict[str, int] | None:
    """What this process takes once all its buffers are in use, by component.

    On the CPU that is its anonymous memory and the weights that are mapped; a pass's activations come and go, so they
    are counted as predicted.
    """
    compute = arithmetic.compute_bytes(info, spec.plan)
    of_eyes, (_, on_way) = eyes.weight_bytes(model, info), arithmetic.eyes_bytes(info, spec.plan.device)
    parts = {"weights": weight_bytes(model) - of_eyes, "kv": cache.n_bytes, "compute": compute}
    if info.sight is not None:
        encoder = arithmetic.encoder_bytes(info, spec.plan.device)
        parts["projector"] = of_eyes + (encoder + on_way if spec.plan.device == "cpu" else 0)
    if spec.plan.device == "cuda":
        free_after = card.free_bytes()
        if free_before is None or free_after is None:
            return None
        taken = free_before - free_after
        parts["compute"] = max(0, torch.cuda.max_memory_reserved() - parts["weights"] - of_eyes - parts["kv"])
        return {**parts, "runtime": max(0, taken - sum(parts.values()))}
    return {**parts, "runtime": runtime_bytes(model, beside=parts["kv"] if cache.fixed else 0)}


def _host_parts(info: FolderInfo) -> dict[str, int]:
    """What this process takes of host memory beside a card."""
    _, on_way = arithmetic.eyes_bytes(info, "cuda")
    return host_parts_beside_card() | ({"projector": on_way} if on_way else {})


def identity(spec: LoadModel, order: Order, dtype: torch.dtype) -> str:
    """Everything that the bytes of a row depend on; another one's are worth nothing."""
    files = sorted(Path(spec.path).glob("*.safetensors"))
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    parts = (told, order, dtype, spec.plan.device, version(), eyes.identity(spec))
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def sensible_threads(n_bytes: int) -> int:
    """Every core for real models, one for toys, where threads cost more than they compute."""
    return 1 if n_bytes < _TOY_BYTES else len(os.sched_getaffinity(0))
