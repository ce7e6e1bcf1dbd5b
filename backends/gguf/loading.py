"""From a `LoadModel` message to a running GGUF engine, with the figures that its `Ready` reports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from backends.engine import LoadError
from backends.files.adapters import KEY
from backends.generation.batching import Batcher
from backends.generation.engine import GeneratingEngine
from backends.generation.readiness import describe, making_guides, open_store
from backends.generation.speculation import told as speculation_told
from backends.generation.tokenizer import Tokenizer
from backends.gguf import drafting, eyes, load_mode, pooled
from backends.gguf.context import Context
from backends.gguf.context_params import scored_bytes
from backends.gguf.embedding_pass import GgufEmbeddingPass
from backends.gguf.encoder import GgufEncoder, check_scores
from backends.gguf.library_log import LibraryLog, has_all_kv_kernels, supports_gpu, version
from backends.gguf.lora import GgufAdapters
from backends.gguf.model import Model
from backends.gguf.passes import pass_tokens
from backends.gguf.pooled import PooledContext
from backends.gguf.threads import sensible_threads
from backends.kv_types import keys_and_values
from backends.machine import card
from backends.messages import EncoderFacts, GeneratorPlan, Layers, Ready
from backends.plan import BATCH_TOKENS, JOBS_AT_ONCE
from backends.vectors.engine import EmbeddingEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.engine import AnyEngine
    from backends.gguf.eyes import Eyes
    from backends.messages import FileLoad, KvTypes, LoadModel, TextPlan

TOY_ENCODER_BYTES = 16 << 20


def load(spec: LoadModel, progress: Callable[[float], None]) -> AnyEngine:
    """Load the model as `spec` says. Raises LoadError."""
    log = LibraryLog()
    log.install()
    plan: TextPlan = spec.plan
    gpu_layers = plan.gpu_layers if plan.device == "cuda" else 0
    if gpu_layers != 0 and not supports_gpu():
        raise LoadError("this build of llama-cpp-python sees no GPU. hint: build it with CUDA, or use device = 'cpu'")
    free_before = card.free_bytes() if spec.plan.device == "cuda" else None
    host_tensors = plan.host_tensors if isinstance(plan, GeneratorPlan) else ()
    path = Path(spec.path)
    with load_mode.watched(path, spec.options.get("load_mode"), progress, on_card=gpu_layers != 0) as file:
        model = Model(
            path,
            gpu_layers=gpu_layers,
            log=log,
            progress=file.loaded,
            mode=file.mode,
            host_tensors=host_tensors,
            mtp=spec.mtp and spec.speculation != "off",
        )
    _check_it_can_serve(model)
    if pooled.gives_vectors(model):
        return _load_encoder(spec, model, log, free_before, file.told)
    assert isinstance(plan, GeneratorPlan)
    check_the_card_takes(plan)
    n_threads = spec.threads or sensible_threads(model.n_bytes)
    seen = eyes.open_for(spec, model, on_card=gpu_layers != 0, n_threads=n_threads)
    tokenizer = Tokenizer(model)
    with making_guides(tokenizer):
        context = Context(
            model,
            context=plan.context,
            parallel=plan.parallel,
            kv_type=plan.kv_type,
            max_batch=BATCH_TOKENS,
            n_threads=n_threads,
            log=log,
            layout=plan.kv_layout,
            kv_tokens=plan.kv_tokens,
            kv_offload=plan.kv_offload,
            copies_cells=gpu_layers != 0 and not plan.kv_on_host,
            fewer_threads=gpu_layers == 0 and not spec.threads,
        )
    if model.tower is not None:
        context.embeddings = GgufEmbeddingPass(context, most_rows=context.max_batch)
    adapters = GgufAdapters()
    adapters.load(spec, model)
    before_bytes = anonymous_bytes()
    context.warm_up(BATCH_TOKENS if spec.plan.device == "cuda" else 1)
    touched_bytes = anonymous_bytes() - before_bytes
    host_parts = {}
    if spec.plan.device == "cuda":
        drafts = drafting.open_for(spec, model, context, plan)
        further = {"projector": seen.n_bytes, "draft": drafts.n_bytes}
        parts = parts_on_card(log, free_before, card.free_bytes(), further=further)
        host_parts = parts_beside_card(log, promised=seen.host_bytes)
    else:
        parts = measured_parts(model, log, touched_bytes=touched_bytes, eyes=seen, mapped=file.mode != "direct")
        drafts = drafting.open_for(spec, model, context, plan)
        parts |= {"draft": drafts.n_bytes} if drafts.n_bytes else {}
    served = adapters.try_all(context)
    ready = describe(
        plan,
        tokenizer,
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.n_vocab,
        layers=Layers(
            log.offloaded_layers(),
            model.n_layers + 1,
            experts_on_host=plan.expert_layers if host_tensors else 0,
            ffn_on_host=plan.ffn_layers if host_tensors else 0,
            kv_on_host=plan.kv_on_host,
        ),
        parts=parts,
        host_parts=host_parts,
        engine=version(),
        speculation=speculation_told(spec.speculation, context, draft=drafts.told),
        media=() if model.tower is None else model.tower.kinds,
        adapters=served.told,
    )
    ends_steps = context.stop_flag is not None and plan.device != "cuda"  # a card computes its part to the end
    batcher = Batcher(max_tokens=context.max_batch, max_itl_us=spec.max_itl_ms * 1000, ends_steps=ends_steps)
    batcher.pace.learn(n_decode=1, chunks=(), duration_us=1e6 * context.warm_up(1))
    ready = replace(ready, file=file.told)
    store, ready = open_store(spec.store, ready, identity=identity(spec, model, context, plan.kv_type, seen))
    return GeneratingEngine(
        model,
        context,
        tokenizer,
        ready=ready,
        batcher=batcher,
        store=store,
        speculation=spec.speculation,
        draft_model=drafts.model,
        adapters=served,
    )


def identity(spec: LoadModel, model: Model, context: Context, kv_type: KvTypes, seen: Eyes) -> str:
    """Everything that the bytes of a state depend on; another one's are worth nothing."""
    parts = (
        model.identity,
        kv_type,
        context.layout,
        spec.plan.device,
        version(),
        seen.identity,
    )
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def _load_encoder(spec: LoadModel, model: Model, log: LibraryLog, free_before: int | None, file: FileLoad) -> AnyEngine:
    """An embedding model or a reranker."""
    max_tokens = pass_tokens(spec.plan.gpu_layers if spec.plan.device == "cuda" else 0)
    context = PooledContext(
        model,
        context=spec.plan.context,
        pass_tokens=max_tokens,
        threads=spec.threads or sensible_threads(model.n_bytes, toy_bytes=TOY_ENCODER_BYTES),
        short_threads=spec.threads or sensible_threads(model.n_bytes),
        log=log,
    )
    check_scores(model, context)
    before_bytes = anonymous_bytes()
    context.encode([np.zeros(max_tokens if spec.plan.device == "cuda" else 1, dtype=np.int32)])
    touched_bytes = anonymous_bytes() - before_bytes
    host_parts = {}
    if spec.plan.device == "cuda":
        parts, host_parts = parts_on_card(log, free_before, card.free_bytes()), parts_beside_card(log)
    else:
        parts = measured_parts(
            model, log, touched_bytes=touched_bytes, output_bytes=context.output_bytes, mapped=file.mode != "direct"
        )
    ready = Ready(
        EncoderFacts(context.limit, model.n_ctx_train, model.n_vocab),
        parallel=JOBS_AT_ONCE,
        layers=Layers(log.offloaded_layers(), model.n_layers + 1),
        measured_bytes=sum(parts.values()) if parts is not None else 0,
        parts=parts or {},
        host_parts=host_parts,
        file=file,
        capabilities=["rerank" if context.reranks else "embedding"],
        engine=version(),
    )
    return EmbeddingEngine(GgufEncoder(model, context, Tokenizer(model), ready=ready, max_tokens=max_tokens))


def _check_it_can_serve(model: Model) -> None:
    if not model.has_tokenizer:
        raise LoadError("the file has no tokenizer, so the model cannot read text")
    if not model.generates and not pooled.is_encoder(model):
        raise LoadError(
            f"a {model.metadata('general.architecture')} model is of no kind that onecard serves: those are "
            "decoders, and encoders for embeddings"
        )


def check_the_card_takes(plan: GeneratorPlan) -> None:
    """Flash attention on a card has kernels for some pairs of types alone; without one attention takes many times the
    memory. As `ggml_cuda_get_best_fattn_kernel` has it. Raises LoadError.
    """
    keys, values = keys_and_values(plan.kv_type)
    if plan.device == "cpu" or plan.kv_on_host or has_all_kv_kernels():
        return
    if keys != values or keys in ("q4_1", "q5_0", "q5_1"):
        raise LoadError(
            f"kv_type {plan.kv_type}: this build of llama.cpp has no flash attention on a card for it. hint: f16, q8_0 "
            "or q4_0 for keys and values alike, or build it with CMAKE_ARGS='-DGGML_CUDA=on "
            "-DGGML_CUDA_FA_ALL_QUANTS=on'"
        )


def measured_parts(
    model: Model,
    log: LibraryLog,
    *,
    touched_bytes: int,
    output_bytes: int | None = None,
    eyes: Eyes | None = None,
    mapped: bool = True,
) -> dict[str, int]:
    """What this process takes once all its buffers are in use, by component; their sum is the kernel's figure.

    The sum is its anonymous memory, the weights that are mapped (they stand in the page cache), and the pages of the
    compute buffers that the warm-up has not touched yet: a long or a scored prompt will. Repacked weights are
    anonymous, and their originals in the file are never read again. So are those that were read and not `mapped`.
    """
    weights = model.n_bytes
    output = sum(log.buffers("output").values()) + scored_bytes(model) if output_bytes is None else output_bytes
    compute = sum(log.buffers("compute").values()) + output
    untouched = max(0, compute - max(0, touched_bytes))
    promised = 0 if eyes is None else eyes.host_bytes
    in_cache = max(0, weights - log.repacked_bytes()) if mapped else 0
    total = anonymous_bytes() + in_cache + untouched + promised
    parts = {"weights": weights, "kv": log.cache_bytes(), "compute": compute}
    if eyes is not None and eyes.n_bytes:
        parts["projector"] = eyes.n_bytes + promised
    if adapters := sum(log.buffers("LoRA").values()):
        parts[KEY] = adapters
    return {**parts, "runtime": max(0, total - sum(parts.values()))}


def parts_on_card(
    log: LibraryLog, free_before: int | None, free_after: int | None, *, further: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """What this process took of the card, by component; None where the driver does not tell. `further`: of components
    that the log does not tell of.

    Buffers on a card are whole from the start. The driver's context and its libraries are what the buffers don't
    explain. Another program that takes or gives memory during the load is counted too: it can not be told apart.
    """
    if free_before is None or free_after is None:
        return None
    parts = _parts_of_log(log, on_card=True) | {name: n_bytes for name, n_bytes in (further or {}).items() if n_bytes}
    return {**parts, "runtime": max(0, free_before - free_after - sum(parts.values()))}


def parts_beside_card(log: LibraryLog, *, promised: int = 0) -> dict[str, int]:
    """What this process takes of host memory beside a card, by component.

    That is its anonymous memory, layers that are mapped because they are not on the card, and the pinned buffers, which
    some drivers count among the anonymous memory: rather too much than too little.
    """
    parts = _parts_of_log(log, on_card=False)
    pinned = sum(
        n_bytes
        for kind in ("model", "KV", "RS", "compute", "output")
        for device, n_bytes in log.buffers(kind).items()
        if device == "CUDA_Host"
    )
    total = anonymous_bytes() + log.buffers("model").get("CPU_Mapped", 0) + pinned + promised
    if promised:
        parts["projector"] = promised
    return {**parts, "runtime": max(0, total - sum(parts.values()))}


def _parts_of_log(log: LibraryLog, *, on_card: bool) -> dict[str, int]:
    kinds = {"weights": ("model",), "kv": ("KV", "RS"), "compute": ("compute", "output")}
    if log.buffers("LoRA"):
        kinds[KEY] = ("LoRA",)
    return {
        part: sum(
            n_bytes
            for kind in names
            for device, n_bytes in log.buffers(kind).items()
            if (device.startswith("CUDA") and device != "CUDA_Host") is on_card
        )
        for part, names in kinds.items()
    }


def anonymous_bytes() -> int:
    """Bytes of memory that this process has for itself alone. Raises LoadError."""
    with Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise LoadError("the kernel does not report this process's memory")
