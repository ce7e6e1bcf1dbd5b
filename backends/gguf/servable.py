"""Whether a sound GGUF file holds a model that can be served at all, told from its header instead of by a load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import version_of_package
from backends.gguf import known, vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.gguf.info import HeaderInfo

_PICTURES: Final = frozenset(
    {
        "flux", "flux2", "sd1", "sd3", "sdxl", "aura", "auraflow", "ltxv", "hyvid", "wan", "lumina2", "qwen_image",
        "cosmos", "hidream", "pig", "z_image",
    }
)  # fmt: skip
_SOUND: Final = frozenset(
    {
        "bark", "csm", "dia", "encodec", "kokoro", "mimi", "orpheus", "outetts", "parakeet", "parler-tts", "pockettts",
        "qwen3tts", "wavtokenizer-dec", "whisper",
    }
)  # fmt: skip
_TWO_PARTS: Final = frozenset({"t5", "t5encoder"})
_DIFFUSION: Final = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_DRAFTS: Final = frozenset({"dflash", "eagle3", "gemma4-assistant"})
_NEEDED: Final = ("block_count", "context_length", "embedding_length")
_AGAIN: Final = "hint: take the publisher's file, or convert the model again"
_PACKAGE: Final = "llama-cpp-python"
_NO_TOKENIZER: Final = ("none", "no_vocab")
_TYPES: Final[Mapping[str, str]] = {
    "adapter": "is a LoRA adapter, which changes another model and is none itself. "
    "hint: name it in the table [models.NAME.adapters] of that model",
    "mmproj": "is a projector for images or sound (mmproj), which belongs beside a model and is none itself. "
    "hint: name the model's own file, beside which it is found",
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
    if info.architecture in _SOUND:
        return f"is a model that hears or speaks ({info.architecture}). hint: onecard serves models of text"
    if info.architecture in _DRAFTS:
        return f"drafts tokens for another model ({info.architecture}) and is none itself. hint: name that model's file"
    if info.architecture in _TWO_PARTS | _DIFFUSION:
        return (
            f"is a {info.architecture} model, which is of no kind that onecard serves: those are decoders, and "
            "encoders for embeddings"
        )
    if not info.tensors:
        return _TYPES["vocab"]
    if info.n_layers > len(info.tensors):
        return f"announces {info.n_layers} layers, but holds {len(info.tensors)} tensors"
    return _unreadable(info)


def _unreadable(info: HeaderInfo) -> str | None:
    """What llama.cpp would not take: architecture, sizes that are not told, tokenizer."""
    is_pinned = version_of_package(_PACKAGE).partition("+")[0] in (f"{_PACKAGE}-{known.VERSION}", f"{_PACKAGE}-none")
    if is_pinned and info.architecture not in known.ARCHITECTURES:
        if any(key.startswith("clip.") for key in info.metadata):
            return _TYPES["mmproj"]
        return (
            f"has the architecture {_shown(info.architecture)}, which {_library()} does not know. hint: it is another "
            "program's, or newer than this onecard; convert a model again that an old converter has written"
        )
    for key in (f"{info.architecture}.{name}" for name in _NEEDED):
        if not isinstance(info.metadata.get(key), int):
            return f"does not say {key}, without which llama.cpp cannot build the model. {_AGAIN}"
    kind = info.metadata.get("tokenizer.ggml.model")
    if kind is None or kind in _NO_TOKENIZER:
        return "has no tokenizer, so the model cannot read text. hint: convert it again with its tokenizer's files"
    if is_pinned and kind not in known.TOKENIZERS:
        return f"has the tokenizer {_shown(kind)} (tokenizer.ggml.model), which {_library()} does not know. {_AGAIN}"
    if not info.array_lengths.get(vocabulary.TOKENS):
        return f"has a tokenizer without a single token ({vocabulary.TOKENS} is empty or missing). {_AGAIN}"
    before = info.metadata.get("tokenizer.ggml.pre", "")
    if is_pinned and kind in known.MERGING - {"gemma4"} and before and before not in known.PRE_TOKENIZERS:
        return (
            f"splits text by the pre-tokenizer {_shown(before)} (tokenizer.ggml.pre), which {_library()} does not "
            f"know. {_AGAIN}"
        )
    return None


def _library() -> str:
    return f"llama.cpp in {_PACKAGE} {known.VERSION}"


def _shown(name: object) -> str:
    """A name from a stranger's file, short and printable."""
    return repr(name)[:60]
