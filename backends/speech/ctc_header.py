"""What a folder of the Wav2Vec2 kind says about itself: an encoder of sound with a letter for each of its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.capabilities import counted
from backends.files import foreign, model_files, tensors
from backends.speech.header import SpeechHeader, is_quantised

if TYPE_CHECKING:
    from pathlib import Path

CLASSES: Final[Mapping[str, str]] = {
    "wav2vec2": "Wav2Vec2ForCTC",
    "hubert": "HubertForCTC",
}
"""The class that writes letters, by `model_type`."""
VOCABULARY: Final = "vocab.json"
_SIZES: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_DEFAULTS: Final[Mapping[str, int]] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 32,
}
_STRIDES: Final = (5, 2, 2, 2, 2, 2, 2)
_KERNELS: Final = (10, 3, 3, 3, 3, 2, 2)
_WIDTHS: Final = (512,) * 7
_MOST: Final = 1_000_000
_MOST_FRAME: Final = 1600
"""Samples; letters come faster than that."""


@dataclass(frozen=True)
class CtcHeader(SpeechHeader):
    """Of one folder."""

    model_type: str
    strides: tuple[int, ...]
    """Of the convolutions over samples."""
    width: int
    """Channels of these."""

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        total = sum(tensor.n_elements for tensor in self.tensors)
        stored = "stored quantised" if self.stored_quantised else "none"
        return {"architecture": self.model_type, "parameters": counted(total), "quantisation": stored}

    @property
    def multilingual(self) -> bool:
        """One language, and which one the files do not say."""
        return False

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return ["transcription"]

    @property
    def head(self) -> None:
        """It shares nothing."""

    @property
    def n_layers(self) -> int:
        """Of the encoder."""
        return self.sizes["num_hidden_layers"]

    @property
    def frame_s(self) -> float:
        """Seconds of sound for each letter or pause."""
        return math.prod(self.strides) / 16_000


def is_ctc(config: Mapping[str, Any]) -> bool:
    """By config.json: also where its class is another one, which is told when it is read."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in CLASSES


def read(folder: Path, config: dict[str, Any], *, quantization: str, max_audio_s: float) -> CtcHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        model_files.check_folder(folder)
        stored, _ = tensors.read(folder)
        if not model_files.is_there(folder / VOCABULARY):
            raise HeaderError(f"the folder has no {VOCABULARY}. hint: copy the one of the model into it")
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    model_type = str(config["model_type"])
    _check_class(config, CLASSES[model_type])
    sizes = {key: _number(config, key) for key in _SIZES}
    shapes = {tensor.name: tensor.shape for tensor in stored}
    wanted = (sizes["vocab_size"], sizes["hidden_size"])
    if shapes.get("lm_head.weight") not in (wanted, None) and not is_quantised(config):
        told = "x".join(map(str, shapes["lm_head.weight"]))
        raise HeaderError(f"lm_head.weight is {told}, and config.json says {'x'.join(map(str, wanted))}")
    if "lm_head.weight" not in shapes:
        raise HeaderError("the files have no lm_head.weight. hint: was the folder downloaded completely?")
    strides = _numbers(config, "conv_stride", _STRIDES)
    if math.prod(strides) > _MOST_FRAME or _numbers(config, "conv_kernel", _KERNELS) == ():
        raise HeaderError(f"config.json says conv_stride = {list(strides)}, and no letters come as slowly")
    width = max(_numbers(config, "conv_dim", _WIDTHS))
    return CtcHeader(sizes, tuple(stored), quantization, is_quantised(config), max_audio_s, model_type, strides, width)


def _check_class(config: Mapping[str, Any], wanted: str) -> None:
    named = config.get("architectures")
    if isinstance(named, list) and named and named[0] != wanted:
        told = foreign.plain([str(named[0])[:60]])[0]
        raise HeaderError(
            f"config.json says {told}, and only {wanted} writes text. hint: name a model that transcribes"
        )
    if config.get("add_adapter"):
        raise HeaderError("the model has an adapter behind its encoder, which is not served. hint: one without")


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key, _DEFAULTS[key])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise HeaderError(f"config.json says no sound {key}. hint: take config.json as its publisher has it")
    return value


def _numbers(config: Mapping[str, Any], key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 32:
        raise HeaderError(f"config.json says no sound {key}. hint: take config.json as its publisher has it")
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 < one <= _MOST for one in value):
        raise HeaderError(f"config.json says no sound {key}. hint: take config.json as its publisher has it")
    return tuple(value)
