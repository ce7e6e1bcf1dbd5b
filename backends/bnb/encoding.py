"""Loads a folder that gives vectors or scores: the model with or without its head, its Dense modules, its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from backends.bnb import arithmetic
from backends.bnb.encoder import FolderEncoder
from backends.bnb.layout import input_limit
from backends.bnb.vocabulary import FolderVocabulary
from backends.bnb.weights import Kind, load_model
from backends.engine import LoadError
from backends.files import model_files
from backends.machine import card
from backends.machine.crash_reason import in_words
from backends.messages import EncoderFacts, EncoderPlan, Layers, Ready
from backends.plan import JOBS_AT_ONCE
from backends.pytorch.measure import host_parts_beside_card, runtime_bytes, version, weight_bytes
from backends.vectors.engine import EmbeddingEngine, Input, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.bnb.header import FolderInfo
    from backends.bnb.weights import Order
    from backends.engine import AnyEngine
    from backends.messages import LoadModel

_ACTIVATIONS: Final = {
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.Sigmoid": torch.nn.Sigmoid,
}
"""By the names sentence-transformers writes; a name from a folder is looked up here and nowhere else."""
VECTORS: Final = Kind(AutoModel, MODEL_MAPPING_NAMES, "computes", unused=("pooler.",))
SCORES: Final = Kind(AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "scores with")


@dataclass(frozen=True)
class Source:
    """What the folder and the operator say, read and checked."""

    spec: LoadModel
    config: dict[str, Any]
    info: FolderInfo
    order: Order
    tokenizer: Any
    free_before: int | None
    """Of the card's memory."""


def load_encoder(source: Source, progress: Callable[[float], None]) -> AnyEngine:
    """The engine of an embedding model or reranker. Raises LoadError."""
    spec, layout = source.spec, source.info.layout
    if layout.gives == "scores" and (n_labels := _n_labels(source.config)) != 1:
        raise LoadError(f"its head has {n_labels} classes, so it is a classifier and no reranker")
    kind = SCORES if layout.gives == "scores" else VECTORS
    model = load_model(spec, source.config, source.order, progress, kind)
    dense = [_dense(Path(spec.path) / folder, device=spec.plan.device) for folder in layout.dense]
    vocabulary = FolderVocabulary(source.tokenizer, n_vocab=int(model.config.get_text_config().vocab_size), ends=set())
    draft = _describe(source, model, vocabulary.n_vocab)
    max_tokens = arithmetic.pass_tokens(spec.plan.device)

    def made(ready: Ready[EncoderFacts]) -> FolderEncoder:
        return FolderEncoder(
            model, vocabulary, source.tokenizer, layout, dense=dense, ready=ready, max_tokens=max_tokens
        )

    _warm_up(made(draft), max_tokens if spec.plan.device == "cuda" else 1)
    parts = _parts(source, model)
    measured = sum(parts.values()) if parts is not None else 0
    beside = host_parts_beside_card() if spec.plan.device == "cuda" else {}
    ready = msgspec.structs.replace(draft, measured_bytes=measured, parts=parts or {}, host_parts=beside)
    return EmbeddingEngine(made(ready))


def _describe(source: Source, model: Any, n_vocab: int) -> Ready[EncoderFacts]:
    spec, n_layers = source.spec, int(model.config.get_text_config().num_hidden_layers) + 1
    return Ready(
        EncoderFacts(input_limit(spec.plan.context, source.config), source.info.n_ctx_train, n_vocab),
        parallel=JOBS_AT_ONCE,
        layers=Layers(n_layers if spec.plan.device == "cuda" else 0, n_layers),
        measured_bytes=0,
        capabilities=["rerank" if source.info.gives == "scores" else "embedding"],
        engine=version(),
    )


def _parts(source: Source, model: Any) -> dict[str, int] | None:
    """What this process takes, by component; a pass's activations come and go, so off a card they are as predicted."""
    spec = source.spec
    plan = EncoderPlan(spec.plan.context, spec.plan.gpu_layers, device=spec.plan.device)
    parts = {"weights": weight_bytes(model), "kv": 0, "compute": arithmetic.pass_bytes(source.info, plan)}
    if spec.plan.device == "cuda":
        free_after = card.free_bytes()
        if source.free_before is None or free_after is None:
            return None
        parts["compute"] = max(0, torch.cuda.max_memory_reserved() - parts["weights"])
        return {**parts, "runtime": max(0, source.free_before - free_after - sum(parts.values()))}
    return {**parts, "runtime": runtime_bytes(model, beside=0)}


def _n_labels(config: dict[str, Any]) -> int:
    labels = config.get("id2label")
    told = config.get("num_labels", len(labels) if isinstance(labels, dict) else 2)
    return told if isinstance(told, int) else 2


def _warm_up(encoder: FolderEncoder, n_tokens: int) -> None:
    """Compute something, so that libraries and buffers are there. Raises LoadError."""
    n = min(n_tokens, encoder.ready().facts.context)
    try:
        encoder.encode([Input(np.zeros(n, dtype=np.int32))] * max(1, n_tokens // n))
    except (NoRoomError, RuntimeError, TypeError, ValueError, IndexError) as error:
        message = f"the model loads, but its first forward pass fails: {in_words(error)}"
        raise LoadError(message, out_of_memory=isinstance(error, NoRoomError)) from error


def _dense(folder: Path, *, device: str) -> torch.nn.Sequential:
    """One Dense module of sentence-transformers. Raises LoadError."""
    try:
        settings = model_files.read_object(folder / "config.json")
        model_files.check(folder / "model.safetensors")
        tensors = load_file(folder / "model.safetensors")
        weight, bias = tensors["linear.weight"].float(), tensors.get("linear.bias")
    except (OSError, ValueError, KeyError, SafetensorError, model_files.FileError) as error:
        raise LoadError(f"{folder.name} is no Dense module in safetensors: {in_words(error)}") from error
    named = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if named not in _ACTIVATIONS:
        raise LoadError(f"{folder.name} asks for the activation {str(named)[:60]!r}, which is none of those known")
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight
    if bias is not None:
        linear.bias.data = bias.float()
    return torch.nn.Sequential(linear, _ACTIVATIONS[named]()).to(device).eval()
