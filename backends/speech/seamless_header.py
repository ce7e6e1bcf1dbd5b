"""What a folder of SeamlessM4T-v2 says of its speech-to-text side: other sides may lie beside it and are not loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.capabilities import counted
from backends.files import model_files, tensors
from backends.speech.header import SpeechHeader, is_quantised

if TYPE_CHECKING:
    from pathlib import Path

TYPE: Final = "seamless_m4t_v2"
TOKENIZER: Final = "tokenizer.json"
FRAMES: Final = 1500
"""Of 30 s, which the encoder hears at once, before its adapter."""
_PARTS: Final = ("speech_encoder.", "text_decoder.", "shared.", "lm_head.")
_TIED: Final = ("lm_head.weight", "text_decoder.embed_tokens.weight")
_SIZES: Final[Mapping[str, int]] = {
    "hidden_size": 1024,
    "vocab_size": 256_102,
    "speech_encoder_layers": 24,
    "speech_encoder_attention_heads": 16,
    "speech_encoder_intermediate_size": 4096,
    "decoder_layers": 24,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 8192,
    "adaptor_stride": 8,
    "num_adapter_layers": 1,
    "max_new_tokens": 256,
    "max_position_embeddings": 4096,
}
"""By their keys, with the library's own where config.json is silent."""
_MOST: Final = 1_000_000
_MOST_SHORTENED: Final = 16
"""Times, by which one frame is left of all."""


@dataclass(frozen=True)
class SeamlessHeader(SpeechHeader):
    """Of one folder."""

    is_relative: bool
    """The encoder's attention knows distances, by a vector for each pair of frames."""

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        total = sum(tensor.n_elements for tensor in self.tensors)
        stored = "stored quantised" if self.stored_quantised else "none"
        found = {"architecture": TYPE, "parameters": counted(total), "languages": "many"}
        return {**found, "quantisation": stored}

    @property
    def multilingual(self) -> bool:
        """Always."""
        return True

    @property
    def head(self) -> tuple[int, int]:
        """Rows and columns of the output head."""
        return self.sizes["vocab_size"], self.sizes["hidden_size"]

    @property
    def n_layers(self) -> int:
        """Of both sides."""
        return self.sizes["speech_encoder_layers"] + self.sizes["decoder_layers"]

    @property
    def n_heard(self) -> int:
        """Positions of a window that the decoder looks at."""
        frames = FRAMES
        for _ in range(min(self.sizes["num_adapter_layers"], _MOST_SHORTENED)):
            frames = math.ceil(frames / self.sizes["adaptor_stride"])
        return frames + 1


def is_seamless(config: Mapping[str, Any]) -> bool:
    """By config.json."""
    return config.get("model_type") == TYPE


def read(folder: Path, config: dict[str, Any], *, quantization: str, max_audio_s: float) -> SeamlessHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        model_files.check_folder(folder)
        stored, _ = tensors.read(folder)
        if not model_files.is_there(folder / TOKENIZER):
            raise HeaderError(
                f"the folder has no {TOKENIZER}. hint: AutoTokenizer.from_pretrained(folder).save_pretrained(folder) "
                "of transformers writes it"
            )
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    sizes = {key: _number(config, key, usual) for key, usual in _SIZES.items()}
    own = [tensor for tensor in stored if tensor.name.startswith(_PARTS)]
    names = {tensor.name for tensor in own}
    wanted = (
        f"speech_encoder.encoder.layers.{sizes['speech_encoder_layers'] - 1}.ffn1.intermediate_dense.weight",
        f"text_decoder.layers.{sizes['decoder_layers'] - 1}.ffn.fc1.weight",
    )
    for name in wanted:
        if name not in names:
            raise HeaderError(f"the files have no {name}. hint: was the folder downloaded completely?")
    kept = tuple(one for one in own if one.name not in _TIED or "shared.weight" not in names)
    quantised = is_quantised(config)
    is_relative = config.get("position_embeddings_type", "relative_key") is not None
    return SeamlessHeader(sizes, kept, quantization, quantised, max_audio_s, is_relative)


def _number(config: Mapping[str, Any], key: str, usual: int) -> int:
    value = config.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise HeaderError(f"config.json says no sound {key}. hint: take config.json as its publisher has it")
    return value
