"""A CTranslate2 Whisper folder written as a Hugging Face folder: fused matrices are parted, no number changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from backends.files import model_files
from quantize.ct2 import archive
from quantize.ct2.archive import Archive, Variable
from quantize.errors import QuantizeError
from quantize.files import check_space, check_target, replacing
from quantize.hf.safetensors_writer import Written, write

_PIECE_BYTES: Final = 4 * 2**20
_MULTILINGUAL: Final = 51865
"""Vocabularies of this size and more have tokens for languages."""
_ATTENTION: Final = {"self_attention": "self_attn", "attention": "encoder_attn"}
_NORMS: Final = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}
_COPIED: Final = ("tokenizer.json",)


@dataclass(frozen=True)
class Slice:
    """A tensor to be written: some rows of a variable."""

    name: str
    variable: Variable
    part: int = 0
    n_parts: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """With its share of the rows."""
        first, *rest = self.variable.shape
        return (first // self.n_parts, *rest)

    @property
    def n_bytes(self) -> int:
        """Of its values."""
        return self.variable.n_bytes // self.n_parts

    @property
    def start(self) -> int:
        """Byte in the source."""
        return self.variable.start + self.part * self.n_bytes


def is_source(folder: Path) -> bool:
    """Whether a folder is one of CTranslate2's."""
    return (folder / "model.bin").is_file() and not (folder / "model.safetensors").exists()


def convert(source: Path, target: Path, *, force: bool = False) -> None:
    """Write the folder whole or not at all. Raises QuantizeError."""
    found = archive.read(source / "model.bin")
    if found.spec != "WhisperSpec":
        raise QuantizeError(f"{source.name} holds a {model_files.shown(found.spec)}, and only Whisper is converted")
    check_target(target, source, force=force)
    told, tokens = _object(source / "config.json"), _tokens(source / "tokenizer.json")
    tensors = list(_tensors(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target.parent, sum(one.n_bytes for one in tensors))
    shape = _shape(found)
    with replacing(target) as temporary:
        temporary.mkdir()
        _write_tensors(found.path, tensors, temporary / "model.safetensors")
        files = {
            "config.json": _config(shape, tokens),
            "generation_config.json": _generation(told, shape, tokens),
            "preprocessor_config.json": _preprocessor(shape),
            "tokenizer_config.json": _tokenizer(),
        }
        for name, document in files.items():
            (temporary / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name in _COPIED:
            (temporary / name).write_bytes(_read(source / name))


@dataclass(frozen=True)
class _Shape:
    width: int
    ff: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mels: int
    vocab: int
    positions: tuple[int, int]
    """Of the encoder and of the decoder."""


def _shape(found: Archive) -> _Shape:
    conv, tokens = _variable(found, "encoder/conv1/weight"), _variable(found, "decoder/embeddings/weight")
    return _Shape(
        width=conv.shape[0],
        ff=_variable(found, "encoder/layer_0/ffn/linear_0/weight").shape[0],
        encoder_layers=_layers(found, "encoder"),
        decoder_layers=_layers(found, "decoder"),
        heads=_heads(found, conv.shape[0]),
        mels=conv.shape[1],
        vocab=tokens.shape[0],
        positions=(
            _variable(found, "encoder/position_encodings/encodings").shape[0],
            _variable(found, "decoder/position_encodings/encodings").shape[0],
        ),
    )


def _variable(found: Archive, name: str) -> Variable:
    """Raises QuantizeError."""
    variable = found.variables.get(name)
    if variable is None:
        raise QuantizeError(f"model.bin has no {name}. hint: is it a Whisper model?")
    if variable.dtype not in ("F16", "F32", "BF16") and variable.shape:
        raise QuantizeError(
            f"{name} is stored in {variable.dtype}, from which the weights cannot be had back exactly. "
            "hint: take the folder in float16"
        )
    if len(variable.shape) not in (1, 2, 3):
        raise QuantizeError(f"{name} has {len(variable.shape)} dimensions, as no matrix of Whisper has")
    return variable


def _layers(found: Archive, side: str) -> int:
    numbers = {
        name.split("/")[1].removeprefix("layer_") for name in found.variables if name.startswith(f"{side}/layer_")
    }
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _heads(found: Archive, width: int) -> int:
    """The file says it where it is new enough; heads of all Whispers have 64 numbers."""
    variable = found.variables.get("encoder/num_heads")
    if variable is None or variable.n_bytes > 8:
        return width // 64
    with model_files.opened(found.path) as file:
        return int.from_bytes(file.at(variable.start, variable.n_bytes), "little")


def _tensors(found: Archive) -> Iterator[Slice]:
    def plain(name: str, source: str) -> Iterator[Slice]:
        yield Slice(name, _variable(found, source))

    def linear(name: str, source: str) -> Iterator[Slice]:
        for end in ("weight", "bias"):
            yield Slice(f"{name}.{end}", _variable(found, f"{source}/{end}"))

    def norm(name: str, source: str) -> Iterator[Slice]:
        yield Slice(f"{name}.weight", _variable(found, f"{source}/gamma"))
        yield Slice(f"{name}.bias", _variable(found, f"{source}/beta"))

    def fused(name: str, source: str, parts: str) -> Iterator[Slice]:
        for end in ("weight", "bias"):
            variable = _variable(found, f"{source}/{end}")
            if variable.shape[0] % len(parts):
                raise QuantizeError(f"{source}/{end} cannot be parted into {len(parts)}")
            for place, part in enumerate(parts):
                if end == "weight" or part != "k":  # Whisper's keys have no bias; CTranslate2 stores zeros
                    yield Slice(f"{name}.{part}_proj.{end}", variable, place, len(parts))

    for side in ("encoder", "decoder"):
        model = f"model.{side}"
        for index in range(_layers(found, side)):
            layer, source = f"{model}.layers.{index}", f"{side}/layer_{index}"
            yield from fused(f"{layer}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            yield from linear(f"{layer}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            yield from norm(f"{layer}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                yield from linear(f"{layer}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                yield from fused(f"{layer}.encoder_attn", f"{source}/attention/linear_1", "kv")
                yield from linear(f"{layer}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                yield from norm(f"{layer}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            yield from linear(f"{layer}.fc1", f"{source}/ffn/linear_0")
            yield from linear(f"{layer}.fc2", f"{source}/ffn/linear_1")
            yield from norm(f"{layer}.final_layer_norm", f"{source}/ffn/layer_norm")
        yield from norm(f"{model}.layer_norm", f"{side}/layer_norm")
        yield from plain(f"{model}.embed_positions.weight", f"{side}/position_encodings/encodings")
    for conv in ("conv1", "conv2"):
        yield from linear(f"model.encoder.{conv}", f"encoder/{conv}")
    yield from plain("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")


def _write_tensors(source: Path, tensors: list[Slice], target: Path) -> None:
    with model_files.opened(source) as file:
        write(
            target, [Written(one.name, one.variable.dtype, one.shape, partial(_pieces, file, one)) for one in tensors]
        )


def _pieces(file: model_files.ModelFile, one: Slice) -> Iterator[bytes]:
    for offset in range(0, one.n_bytes, _PIECE_BYTES):
        yield file.at(one.start + offset, min(_PIECE_BYTES, one.n_bytes - offset))


def _tokens(path: Path) -> dict[str, int]:
    """The special tokens by their text."""
    added = _object(path).get("added_tokens")
    found = {
        str(token["content"]): int(token["id"])
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("id"), int) and "content" in token
    }
    if missing := [
        name for name in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>") if name not in found
    ]:
        raise QuantizeError(f"tokenizer.json has no {missing[0]}. hint: is it a Whisper model?")
    return found


def _config(shape: _Shape, tokens: dict[str, int]) -> dict[str, Any]:
    end = tokens["<|endoftext|>"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float16",
        "vocab_size": shape.vocab,
        "d_model": shape.width,
        "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers,
        "encoder_attention_heads": shape.heads,
        "decoder_attention_heads": shape.heads,
        "encoder_ffn_dim": shape.ff,
        "decoder_ffn_dim": shape.ff,
        "num_mel_bins": shape.mels,
        "max_source_positions": shape.positions[0],
        "max_target_positions": shape.positions[1],
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
    }


def _generation(told: dict[str, Any], shape: _Shape, tokens: dict[str, int]) -> dict[str, Any]:
    languages = {
        text: token
        for text, token in tokens.items()
        if isinstance(told.get("lang_ids"), list) and token in told["lang_ids"]
    }
    tasks = {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in tokens}
    multilingual = shape.vocab >= _MULTILINGUAL
    document = {
        "alignment_heads": told.get("alignment_heads"),
        "suppress_tokens": told.get("suppress_ids"),
        "begin_suppress_tokens": told.get("suppress_ids_begin"),
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "is_multilingual": multilingual,
        "eos_token_id": tokens["<|endoftext|>"],
        "pad_token_id": tokens["<|endoftext|>"],
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
        "prev_sot_token_id": tokens.get("<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "max_length": shape.positions[1],
        "return_timestamps": False,
        **({"lang_to_id": languages, "task_to_id": tasks} if multilingual else {}),
    }
    return {name: value for name, value in document.items() if value is not None}


def _preprocessor(shape: _Shape) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": shape.mels,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "padding_value": 0.0,
    }


def _tokenizer() -> dict[str, Any]:
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    return {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **special}


def _object(path: Path) -> dict[str, Any]:
    try:
        return model_files.read_object(path, model_files.limit_of(path.name) or model_files.CONFIG_BYTES)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None


def _read(path: Path) -> bytes:
    try:
        return model_files.read_bytes(path, model_files.VOCABULARY_BYTES)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
