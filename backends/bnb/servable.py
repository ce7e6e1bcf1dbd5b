"""Whether a sound folder holds a model that can be served at all, told from its files instead of by a load."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from backends.backend import version_of_package
from backends.bnb import architectures
from backends.bnb.sight import PREPARES, TYPES
from backends.bnb.stored import EMBEDDINGS, layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.bnb.header import FolderInfo

_TEXT_HEADS: Final = ("CausalLM", "ConditionalGeneration", "Generation", "MaskedLM", "PreTraining", "TextGeneration")
_HEAD: Final = re.compile(r"For([A-Z]\w*)$")
_WITHOUT_CACHE: Final = frozenset(
    {
        "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "mamba", "mamba2",
        "nemotron_h", "olmo_hybrid", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    }
)  # fmt: skip
"""Architectures with layers that keep a running state, for which this backend has no cache; llama.cpp has for many."""
_LAYER_KINDS: Final = frozenset({"full_attention", "sliding_attention"})
_UNTIED: Final = frozenset({"llama", "mistral", "mixtral", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
"""Architectures of transformers whose head is not the embedding where config.json says nothing."""
_GGUF: Final = "hint: take a GGUF file of the model"


def unservable(info: FolderInfo, config: Mapping[str, Any], *, runs_code: bool) -> str | None:
    """Why nothing could be answered with this folder, in a sentence; None where nothing speaks against it.

    `config` is the whole config.json; with `runs_code` the folder's own classes may be what transformers lacks.
    """
    kind = info.architecture
    if not runs_code and (why := _no_class(info, config)) is not None:
        return why
    if info.gives != "text":
        return None
    if config.get("is_encoder_decoder") is True:
        return (
            f"a {kind} model has an encoder and a decoder, as models for translation have, which is of no kind that "
            "onecard serves: those are decoders, encoders for embeddings, and Whisper for speech"
        )
    head = _HEAD.search(_named(config))
    if head is not None and not head[1].startswith(_TEXT_HEADS) and not runs_code:
        return f"config.json says {_named(config)!r}, and a model for that gives no text. hint: name a model of text"
    strange = sorted({str(layer) for layer in _list(info.config.get("layer_types"))} - _LAYER_KINDS)
    if kind in _WITHOUT_CACHE or strange:
        layers = f"layers of kind {', '.join(strange)[:80]}" if strange else "layers that keep a running state"
        return f"a {kind} model has {layers}, for which this backend has no cache. {_GGUF}, where llama.cpp knows it"
    return _incomplete(info)


def _no_class(info: FolderInfo, config: Mapping[str, Any]) -> str | None:
    kind = info.architecture
    if architectures.has_class(kind, info.gives) is not False or (info.sight is not None and architectures.sees(kind)):
        return None
    also = f" ({_named(config)})" if _named(config) else ""
    library = version_of_package("transformers").replace("-", " ")
    other = architectures.other_kind(kind)
    hint = (
        f"it knows {other}, which is no model of text" if other and info.gives == "text" else "a newer one may know it"
    )
    if isinstance(config.get("vision_config"), dict) and info.sight is None:
        return _blind(kind, also)
    if not kind:
        return "config.json does not say model_type, so that its architecture is not known. hint: it is damaged"
    return (
        f"config.json says model_type = {kind[:60]!r}{also}, which is no architecture that {library} "
        f"{architectures.does(info.gives)}. hint: {hint}"
    )


def _blind(kind: str, also: str) -> str:
    """Why a folder with eyes is not served."""
    if kind in TYPES:
        return (
            f"the folder has neither {' nor '.join(PREPARES)}, which say how a {kind} model is shown images. "
            "hint: copy them from where the model was published"
        )
    return (
        f"config.json says model_type = {kind[:60]!r}{also}, a model that sees images, and of its kind onecard serves "
        "GGUF files alone. hint: take its GGUF file and the projector (mmproj) that is published with it"
    )


def _incomplete(info: FolderInfo) -> str | None:
    """Parts that config.json calls for and no file has; of 16-bit weights, whose names and shapes are the model's."""
    if info.stored_quantised:
        return None
    n_stored = layers_of(tensor.name for tensor in info.tensors)
    if n_stored and n_stored < info.n_layers:
        return (
            f"config.json says num_hidden_layers = {info.n_layers}, and the files hold weights of {n_stored} layers. "
            "hint: was the folder downloaded completely?"
        )
    tied = info.config.get("tie_word_embeddings", None if info.architecture not in _UNTIED else False)
    if tied is not False or any(_may_be_head(tensor.name, tensor.shape, info.n_vocab) for tensor in info.tensors):
        return None
    return (
        "the files have no output head (lm_head.weight), and config.json does not tie it to the embedding. "
        "hint: was the folder downloaded completely? Where the model ties them, set tie_word_embeddings to true"
    )


def _may_be_head(name: str, shape: tuple[int, ...], n_vocab: int) -> bool:
    """A matrix with a row or column per token that is not the embedding."""
    return len(shape) == 2 and n_vocab in shape and not f".{name}".endswith(tuple(f".{end}" for end in EMBEDDINGS))


def _named(config: Mapping[str, Any]) -> str:
    """The class that has written the folder."""
    names = _list(config.get("architectures"))
    return names[0][:60] if names and isinstance(names[0], str) and names[0].isidentifier() else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
