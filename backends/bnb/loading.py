"""From a `LoadModel` message to a running engine over transformers and bitsandbytes, with its `Ready`'s figures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})  # read when the libraries are imported

import accelerate  # noqa: F401 - transformers imports it while it loads, a template before
import msgspec
import torch
import transformers.models.llama.modeling_llama
import transformers.quantizers.auto  # noqa: F401
from transformers import conversion_mapping

from backends.backend import HeaderError
from backends.bnb import adapted, arithmetic, eyes, folder
from backends.bnb.body import Body, open_body, tokenizer_of
from backends.bnb.encoding import Source, load_encoder
from backends.bnb.header import read
from backends.bnb.kv import KvCache
from backends.bnb.weights import Order
from backends.engine import LoadError
from backends.files.adapters import KEY
from backends.generation.batching import Batcher
from backends.generation.draft_model import DraftModel, common_tokens
from backends.generation.engine import GeneratingEngine
from backends.generation.readiness import describe, open_store
from backends.generation.speculation import told as speculation_told
from backends.machine import card
from backends.messages import GeneratorPlan, Layers
from backends.pytorch.measure import host_parts_beside_card, runtime_bytes, version, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.bnb.header import FolderInfo
    from backends.engine import AnyEngine
    from backends.messages import LoadModel, TextPlan

conversion_mapping.get_checkpoint_conversion_mapping("")  # makes its table once, 0.15 s: a template has it before

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
    source = tokenizer_of(path, order)
    torch.set_num_threads(spec.threads or sensible_threads(info.file_bytes))
    if info.gives != "text":
        return load_encoder(Source(spec, config, info, order, source, free_before), progress)
    return _engine(spec, open_body(spec, config, info, source, progress), info, order, free_before=free_before)


def _engine(spec: LoadModel, body: Body, info: FolderInfo, order: Order, *, free_before: int | None) -> AnyEngine:
    plan, context = spec.plan, body.context
    assert isinstance(plan, GeneratorPlan)
    on_card = plan.device == "cuda"
    adapters, adapter_bytes = adapted.load(spec, body.model, info, context)
    parts = _parts(spec, body.model, info, body.cache, free_before, adapter_bytes)
    draft, draft_bytes = _draft(spec, body, plan)
    if parts is not None and draft_bytes:
        parts["draft"] = draft_bytes
    ready = describe(
        plan,
        body.tokenizer,
        n_ctx_train=info.n_ctx_train,
        n_vocab=body.vocabulary.n_vocab,
        layers=Layers(body.n_layers + 1 if on_card else 0, body.n_layers + 1),
        parts=parts,
        host_parts=_host_parts(info) if on_card else {},
        engine=version(),
        speculation=speculation_told(spec.speculation, context, draft=f"model:{spec.draft.name}" if spec.draft else ""),
        media=info.media,
        adapters=adapters.told,
    )
    batcher = Batcher(max_tokens=context.max_batch, max_itl_us=spec.max_itl_ms * 1000)
    batcher.pace.learn(n_decode=1, chunks=(), duration_us=1e6 * body.step_s)
    store, ready = open_store(spec.store, ready, identity=identity(spec, body, order))
    return GeneratingEngine(
        body.vocabulary,
        context,
        body.tokenizer,
        ready=ready,
        batcher=batcher,
        store=store,
        speculation=spec.speculation,
        draft_model=draft,
        adapters=adapters,
    )


def _draft(spec: LoadModel, target: Body, plan: GeneratorPlan) -> tuple[DraftModel | None, int]:
    """The model that drafts, where one is wanted, and the bytes it takes where it computes. Raises LoadError."""
    if spec.draft is None or spec.speculation == "off":
        return None, 0
    name, path, order = spec.draft.name, Path(spec.draft.path), Order.of(spec.draft.options)
    try:
        info = read(path, order.quantization)
        own = msgspec.structs.replace(
            plan.of_draft(info.n_ctx_train), kv_type=arithmetic.computed_type(info, plan.device)
        )
        its = msgspec.structs.replace(spec, path=spec.draft.path, options=spec.draft.options, plan=own)
        config = folder.check(path, trust_remote_code=order.trust_remote_code)
        if info.sight is not None:
            raise LoadError("it reads images, and drafts are of text. hint: name a model of text in speculation")
        body = open_body(its, config, info, tokenizer_of(path, order), lambda _: None)
        n_common = common_tokens(target.vocabulary, body.vocabulary)
    except HeaderError as error:
        raise LoadError(f"its draft model {name}: {error}") from error
    except LoadError as error:
        raise LoadError(f"its draft model {name}: {error.message}", out_of_memory=error.out_of_memory) from error
    made = DraftModel(
        body.context,
        parallel=plan.parallel,
        n_tokens=own.context,
        n_vocab=n_common,
        step_us=1e6 * body.step_s,
        close=body.close,
    )
    return made, weight_bytes(body.model) + body.cache.n_bytes + arithmetic.compute_bytes(info, own)


def _parts(
    spec: LoadModel,
    model: Any,
    info: FolderInfo,
    cache: KvCache,
    free_before: int | None,
    adapters: adapted.AdapterBytes,
) -> dict[str, int] | None:
    """What this process takes once all its buffers are in use, by component.

    On the CPU that is its anonymous memory and the weights that are mapped; a pass's activations come and go, so they
    are counted as predicted.
    """
    compute = arithmetic.compute_bytes(info, spec.plan)
    of_eyes, (_, on_way) = eyes.weight_bytes(model, info), arithmetic.eyes_bytes(info, spec.plan.device)
    parts = {"weights": weight_bytes(model) - of_eyes - adapters.within, "kv": cache.n_bytes, "compute": compute}
    if info.sight is not None:
        encoder = arithmetic.encoder_bytes(info, spec.plan.device)
        parts["projector"] = of_eyes + (encoder + on_way if spec.plan.device == "cpu" else 0)
    if adapters.total:
        parts[KEY] = adapters.total
    if spec.plan.device == "cuda":
        free_after = card.free_bytes()
        if free_before is None or free_after is None:
            return None
        taken = free_before - free_after
        held = parts["weights"] + of_eyes + parts["kv"] + adapters.total
        parts["compute"] = max(0, torch.cuda.max_memory_reserved() - held)
        return {**parts, "runtime": max(0, taken - sum(parts.values()))}
    beside = adapters.total - adapters.within + (parts["kv"] if cache.fixed else 0)
    return {**parts, "runtime": runtime_bytes(model, beside=beside)}


def _host_parts(info: FolderInfo) -> dict[str, int]:
    """What this process takes of host memory beside a card."""
    _, on_way = arithmetic.eyes_bytes(info, "cuda")
    return host_parts_beside_card() | ({"projector": on_way} if on_way else {})


def identity(spec: LoadModel, body: Body, order: Order) -> str:
    """Everything that the bytes of a row depend on; another one's are worth nothing."""
    parts = (body.vocabulary.identity, order, body.dtype, spec.plan.device, version(), eyes.identity(spec))
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def sensible_threads(n_bytes: int) -> int:
    """Every core for real models, one for toys, where threads cost more than they compute."""
    return 1 if n_bytes < _TOY_BYTES else len(os.sched_getaffinity(0))
