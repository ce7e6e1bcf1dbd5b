"""What a Whisper folder says about itself: its sizes, its languages, the bytes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backends.backend import Header, HeaderError
from backends.capabilities import counted
from backends.files import foreign, model_files, tensors
from backends.speech.kind import TRANSCRIBE, TRANSLATION

if TYPE_CHECKING:
    from pathlib import Path

    from backends.files.tensors import StoredTensor

MULTILINGUAL: Final = 51865
"""Vocabularies of this size and more have tokens for languages."""
FRAMES: Final = 1500
"""Positions of 30 s, which all Whispers hear at once."""
_CLASS: Final = "WhisperForConditionalGeneration"
_SIZES: Final = (
    "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
    "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "num_mel_bins", "max_source_positions", "max_target_positions",
)  # fmt: skip
_DEFAULTS: Final[Mapping[str, int]] = {"max_source_positions": FRAMES, "max_target_positions": 448, "num_mel_bins": 80}
_MOST: Final = 1_000_000
_TOKENIZER: Final = "tokenizer.json"


@dataclass(frozen=True)
class SpeechHeader(Header):
    """Of one folder."""

    backend: ClassVar[str] = "speech"

    sizes: Mapping[str, int]
    """Of config.json, by its keys."""
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    quantization: str
    """How 16-bit weights shall be loaded."""
    stored_quantised: bool
    max_audio_s: float

    @property
    def gives(self) -> str:
        """Transcripts."""
        return TRANSCRIBE.gives

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        languages = "many" if self.multilingual else "English"
        total = sum(tensor.n_elements for tensor in self.tensors)
        stored = "stored quantised" if self.stored_quantised else "none"
        return {"architecture": "whisper", "parameters": counted(total), "languages": languages, "quantisation": stored}

    @property
    def multilingual(self) -> bool:
        """Whether it hears more than English."""
        return self.sizes["vocab_size"] >= MULTILINGUAL

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return ["transcription", *([TRANSLATION] if self.multilingual else [])]

    @property
    def head(self) -> tuple[int, int] | None:
        """Rows and columns of the output head that embeddings share; None where there is none such."""
        return self.sizes["vocab_size"], self.sizes["d_model"]

    @property
    def n_layers(self) -> int:
        """Of both sides."""
        return self.sizes["encoder_layers"] + self.sizes["decoder_layers"]

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.sizes["vocab_size"]


def is_whisper(config: Mapping[str, Any]) -> bool:
    """By config.json."""
    return config.get("model_type") == "whisper"


def is_ctranslate2(config: Mapping[str, Any]) -> bool:
    """A folder that CTranslate2's converter wrote of a Whisper model."""
    return "model_type" not in config and "alignment_heads" in config and "suppress_ids" in config


def read(folder: Path, *, quantization: str, max_audio_s: float) -> SpeechHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        model_files.check_folder(folder)
        config = model_files.read_object(folder / "config.json")
        if is_ctranslate2(config):
            raise HeaderError(
                "the folder is CTranslate2's, as faster-whisper takes it. "
                f"hint: onecard quantize {model_files.shown(folder.name)} --to hf writes one that onecard serves"
            )
        sizes = _sizes(config)
        stored, _ = tensors.read(folder)
        if not model_files.is_there(folder / _TOKENIZER):
            raise HeaderError(f"the folder has no {_TOKENIZER}. hint: copy the one of the Whisper model into it")
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    _check_shapes(sizes, stored)
    return SpeechHeader(sizes, tuple(stored), quantization, is_quantised(config), max_audio_s)


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether the weights are stored so. Raises HeaderError where it is not as bitsandbytes does it."""
    stored = config.get("quantization_config")
    if stored is None:
        return False
    method = stored.get("quant_method", "bitsandbytes") if isinstance(stored, dict) else None
    if method not in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        told = foreign.plain([str(method)[:40]])[0]
        raise HeaderError(f"the weights are stored with {told}, and onecard reads bitsandbytes. hint: take 16 bits")
    return True


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    named = config.get("architectures")
    if isinstance(named, list) and named and named[0] != _CLASS:
        told = foreign.plain([str(named[0])[:60]])[0]
        raise HeaderError(
            f"config.json says {told}, and only {_CLASS} writes text. hint: name a model that transcribes"
        )
    found = {}
    for key in _SIZES:
        value = config.get(key, _DEFAULTS.get(key))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
            raise HeaderError(f"config.json says no sound {key}. hint: take config.json as its publisher has it")
        found[key] = value
    if found["max_source_positions"] != FRAMES:
        told = f"config.json says max_source_positions = {found['max_source_positions']}"
        raise HeaderError(f"{told}, and windows of 30 s have {FRAMES}. hint: take config.json as its publisher has it")
    if any(found["d_model"] % found[f"{side}_attention_heads"] for side in ("encoder", "decoder")):
        raise HeaderError("config.json says a d_model that its attention heads cannot share")
    return found


def _check_shapes(sizes: Mapping[str, int], stored: list[StoredTensor]) -> None:
    """What config.json says of the largest parts is in the files. Raises HeaderError."""
    shapes = {tensor.name: tensor.shape for tensor in stored}
    width = sizes["d_model"]
    last = f"layers.{sizes['encoder_layers'] - 1}.fc1.weight", f"layers.{sizes['decoder_layers'] - 1}.fc1.weight"
    wanted = {
        "model.encoder.conv1.weight": (width, sizes["num_mel_bins"], 3),
        "model.decoder.embed_tokens.weight": (sizes["vocab_size"], width),
        f"model.encoder.{last[0]}": None,
        f"model.decoder.{last[1]}": None,
    }
    for name, shape in wanted.items():
        if name not in shapes:
            raise HeaderError(f"the files have no {name}. hint: was the folder downloaded completely?")
        if shape is not None and shapes[name] != shape:
            told = "x".join(map(str, shapes[name]))
            raise HeaderError(f"{name} is {told}, and config.json says {'x'.join(map(str, shape))}")
