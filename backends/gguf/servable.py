"""Whether a sound GGUF file holds a model that can be served at all, told from its header instead of by a load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.gguf.info import HeaderInfo

_PICTURES: Final = frozenset(
    {
        "flux", "flux2", "sd1", "sd3", "sdxl", "aura", "auraflow", "ltxv", "hyvid", "wan", "lumina2", "qwen_image",
        "cosmos", "hidream", "pig", "z_image",
    }
)  # fmt: skip
_TWO_PARTS: Final = frozenset({"t5", "t5encoder", "wavtokenizer-dec"})
_DIFFUSION: Final = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_NO_TOKENIZER: Final = ("", "none", "no_vocab")
_TYPES: Final[Mapping[str, str]] = {
    "adapter": "is a LoRA adapter, which changes another model and is none itself. "
    "hint: name a model into which it has been merged",
    "mmproj": "is a projector for images or sound (mmproj), which belongs beside a model and is none itself. "
    "hint: name the model's own file; onecard reads text",
    "imatrix": "is an importance matrix, which `onecard quantize --imatrix` takes. hint: name a model",
    "vocab": "holds a vocabulary and no weights. hint: name a model",
}


def unservable(info: HeaderInfo) -> str | None:
    """Why nothing could be answered with this file, as a clause with its verb; None where nothing speaks against it."""
    kind = info.metadata.get("general.type")
    if isinstance(kind, str) and kind in _TYPES:
        return _TYPES[kind]
    if "adapter.type" in info.metadata:
        return _TYPES["adapter"]
    if info.architecture in ("clip", "mmproj"):
        return _TYPES["mmproj"]
    if info.architecture in _PICTURES:
        return f"is a model that makes pictures or films ({info.architecture}). hint: onecard serves models of text"
    if info.architecture in _TWO_PARTS | _DIFFUSION:
        return (
            f"is a {info.architecture} model, which is of no kind that onecard serves: those are decoders, and "
            "encoders for embeddings"
        )
    if not info.tensors:
        return _TYPES["vocab"]
    if info.n_layers > len(info.tensors):
        return f"announces {info.n_layers} layers, but holds {len(info.tensors)} tensors"
    if info.metadata.get("tokenizer.ggml.model", "gpt2" if info.n_vocab else "") in _NO_TOKENIZER:
        return "has no tokenizer, so the model cannot read text. hint: convert it again with its tokenizer's files"
    return None
