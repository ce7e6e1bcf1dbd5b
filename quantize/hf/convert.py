"""A Hugging Face folder written as one GGUF file, a few MiB at a time.

Owns the plan of a file (every tensor with its name, shape and type, known before a byte is written) and its writing.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from backends.bnb.stored import Place, corrections, has_own_head, own_head_remark
from backends.files import model_files
from backends.files.sampling_defaults import GGUF_KEYS, SamplingDefaults, of_folder
from quantize.errors import QuantizeError
from quantize.hf import pretokenizer
from quantize.hf.config import Config
from quantize.hf.families import family_of
from quantize.hf.families.base import Family, Mapped, named_as
from quantize.hf.pooling import write_pooling
from quantize.hf.reference import Reference, load_reference
from quantize.hf.safetensors import FLOATS, Stored
from quantize.hf.shapes import check_shapes, with_head_dim
from quantize.hf.source import HfSource, read_json
from quantize.hf.special import write_special
from quantize.hf.tensor import Dtype, Planned, chunks
from quantize.hf.vocabulary import HfVocabulary, read_vocabulary
from quantize.words import shown

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

_FILE_TYPES: Final = {
    Dtype.F32: gguf.LlamaFileType.ALL_F32,
    Dtype.F16: gguf.LlamaFileType.MOSTLY_F16,
    Dtype.BF16: gguf.LlamaFileType.MOSTLY_BF16,
}
_RAW_TYPES: Final = {
    Dtype.F32: gguf.GGMLQuantizationType.F32,
    Dtype.F16: gguf.GGMLQuantizationType.F16,
    Dtype.BF16: gguf.GGMLQuantizationType.BF16,
}
ALIGNMENT: Final = 32


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that is known before writing."""

    source: HfSource
    family: Family
    config: Config
    dtype: Dtype
    tensors: tuple[Planned, ...]
    vocabulary: HfVocabulary
    reference: Reference | None
    pre: str
    warnings: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the data part, with padding."""
        return sum(_padded(tensor.n_bytes) for tensor in self.tensors)


def make_plan(source: HfSource, dtype: Dtype, *, pre: str | None = None) -> ConversionPlan:
    """Check the folder against its family and lay the file out. Raises QuantizeError; writes nothing that stays."""
    config = Config(source.config)
    family = family_of(source.architecture, config.text("model_type") or None)
    if "quantization_config" in source.config:
        raise QuantizeError("the model is already quantised (quantization_config); convert the original weights")
    if not family.is_encoder:
        config.require("is_causal", True)
        config.require("use_bidirectional_attention", False)
    config = Config(with_head_dim(source.config, source.tensors.values()))
    mapped, remarks = _mapped(source, family, config)
    tensors = _planned(family, config, dtype, mapped)
    embedding = next((stored for stored, entry in mapped if entry.name == family.embedding), None)
    if embedding is None:
        raise QuantizeError(f"no shard holds {family.embedding}, the token embedding")
    vocabulary = read_vocabulary(source.path, n_rows=embedding.shape[0])
    sampling = sampling_of(source.path)
    unknown = [name for name in sampling.values if name not in GGUF_KEYS]
    lost = [f"generation_config.json: a GGUF file has no place for {', '.join(unknown)}"] if unknown else []
    warnings = [*remarks, *sampling.remarks, *lost, *family.warnings(config)]
    if source.architecture and source.architecture not in family.hf_names:
        warnings.append(f"config.json names {shown(source.architecture)}; it is converted as {family.gguf_name}")
    reference = load_reference(vocabulary.tokenizer_json) if vocabulary.tokenizer_json else None
    if reference is None:
        warnings.append("there is no tokenizer.json to compare the tokenization with")
        match = pretokenizer.Match("default", 0)
    else:
        if vocabulary.kind == "llama":
            vocabulary.add_space_prefix = reference.prefixes_space
        if max(reference.n_added) > 1:
            before, behind = reference.n_added
            warnings.append(
                f"tokenizer.json puts {before} tokens before every text and {behind} behind it; "
                "llama.cpp puts one at most"
            )
        match = _recognised(vocabulary, reference, family, pre)
    if match.n_wrong:
        total = len(pretokenizer.PROBES)
        warnings.append(f"llama.cpp tokenizes {match.n_wrong} of {total} probe lines otherwise than tokenizer.json")
    return ConversionPlan(source, family, config, dtype, tensors, vocabulary, reference, match.pre, tuple(warnings))


def write_plan(plan: ConversionPlan, path: Path, *, progress: Progress | None = None, allow_nan: bool = False) -> None:
    """Write the file. Raises QuantizeError for damaged weights or such that do not fit, OSError for the disk."""
    total, done = plan.n_bytes, 0
    with _Head(plan, path) as out:
        for tensor in plan.tensors:
            shard = plan.source.shards[tensor.source.file] if isinstance(tensor.source, Stored) else None
            for chunk in chunks(tensor, shard, allow_nan=allow_nan):
                out.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            out.write(bytes(_padded(tensor.n_bytes) - tensor.n_bytes))


def write_outline(plan: ConversionPlan, path: Path) -> None:
    """The file with all its headers and no data: as long as the real one, and nearly nothing on the disk."""
    with _Head(plan, path) as out:
        out.truncate(out.tell() + plan.n_bytes)


class _Head:
    """Writes everything before the data, and hands out the file after it."""

    def __init__(self, plan: ConversionPlan, path: Path) -> None:
        self._writer = _new_writer(plan.family.gguf_name)
        _write_metadata(self._writer, plan)
        for tensor in plan.tensors:
            self._writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=_RAW_TYPES[tensor.dtype]
            )
        self._path = path

    def __enter__(self) -> Any:
        writer = self._writer
        writer.write_header_to_file(self._path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        return out

    def __exit__(self, *failure: object) -> None:
        self._writer.close()


def _new_writer(architecture: str) -> Any:
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    return gguf.GGUFWriter(None, architecture)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _mapped(source: HfSource, family: Family, config: Config) -> tuple[list[tuple[Stored, Mapped]], list[str]]:
    """Tensors that are taken, and remarks. Raises QuantizeError for number types that are no plain floats."""
    names = named_as(family, source.tensors)
    entries = [(stored, family.map_tensor(names[name], config)) for name, stored in source.tensors.items()]
    at = {entry.name: stored for stored, entry in entries if entry is not None}
    tied = config.flag("tie_word_embeddings", default=family.tied_by_default)
    embedding, head = at.get(family.embedding), at.get(family.head or "")
    try:
        own = has_own_head(_place(embedding), _place(head), tied=tied)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    remarks = [sentence for _, sentence in corrections(map(_place, source.tensors.values()), config.values).values()]
    if own and tied and head is not None:
        remarks.append(own_head_remark(_place(head)))
    if embedding is None and head is not None and tied:
        entries.append((head, Mapped(family.embedding)))
        remarks.append(f"{family.embedding} is not stored and {head.name} is: config.json ties them, so it is both")
    taken = []
    for stored, entry in entries:
        if entry is None or (entry.name == family.head and not own):
            continue
        if stored.dtype not in FLOATS:
            raise QuantizeError(
                f"tensor {shown(stored.name)} is of type {stored.dtype}; {', '.join(FLOATS)} are converted"
            )
        taken.append((stored, entry))
    if not tied and family.head and head is None and not _is_embedder(source):
        raise QuantizeError(f"no shard holds {family.head}, and config.json does not tie it to the embedding")
    return taken, remarks


def _place(stored: Stored | None) -> Any:
    return stored and Place(stored.name, stored.file, stored.start, stored.n_bytes, stored.dtype, stored.shape)


def _is_embedder(source: HfSource) -> bool:
    """Its tokens' vectors are pooled, so that no head is needed."""
    return (source.path / "modules.json").is_file()


def _planned(family: Family, config: Config, dtype: Dtype, mapped: list[tuple[Stored, Mapped]]) -> tuple[Planned, ...]:
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf_name)
    table = gguf.get_tensor_name_map(architecture, config.n_layers)
    tensors = [
        Planned(name, tuple(numbers.shape), Dtype.F32, numbers) for name, numbers in family.extras(config).items()
    ]
    for stored, entry in mapped:
        name = table.get_name(entry.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise QuantizeError(f"tensor {shown(stored.name)} has no place in a GGUF file of {family.gguf_name}")
        transposed = entry.rearrange is not None and family.gguf_name == "gpt2"
        shape = stored.shape[::-1] if transposed else stored.shape
        is_f32 = len(shape) < 2 or name.startswith(family.f32_names) or name.endswith("_norm.weight")
        tensors.append(Planned(name, shape, Dtype.F32 if is_f32 else dtype, stored, entry.rearrange, entry.add))
    _check_complete(tensors, config.n_layers)
    check_shapes(tensors, config)
    return tuple(tensors)


def _check_complete(tensors: list[Planned], n_layers: int) -> None:
    """Every layer has the tensors of the first, and no name is there twice."""
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise QuantizeError("two tensors of the folder become the same tensor of the GGUF file")
    of_first = [name.removeprefix("blk.0.") for name in names if name.startswith("blk.0.")]
    for layer in range(n_layers):
        for rest in sorted(of_first):
            if f"blk.{layer}.{rest}" not in names:
                raise QuantizeError(f"layer {layer} of {n_layers} has no {rest}: the folder is incomplete")
    if not of_first:
        raise QuantizeError("the folder holds no layers")


def _recognised(vocabulary: HfVocabulary, reference: Reference, family: Family, pre: str | None) -> pretokenizer.Match:
    with tempfile.TemporaryDirectory(prefix="onecard-") as folder:
        file = Path(folder) / "vocabulary.gguf"
        writer = _new_writer(family.gguf_name)
        vocabulary.write(writer, "default")
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return pretokenizer.recognise(vocabulary, reference, file, wanted=pre)


def _safe_name(plan: ConversionPlan) -> str | None:
    """The folder's name, but not where it would send llama.cpp for tokens of Phi-3 that this vocabulary has not."""
    name = plan.source.path.resolve().name
    says_phi3 = any(sign in name.lower() for sign in ("phi-3", "phi3"))
    return None if says_phi3 and not {"<unk>", "<s>", "<|endoftext|>"} <= set(plan.vocabulary.tokens) else name


def sampling_of(folder: Path) -> SamplingDefaults:
    """How the model's makers want tokens chosen. Raises QuantizeError for a file that is no JSON."""
    return of_folder(read_json(folder / "generation_config.json"))


def _write_sampling(writer: Any, values: Mapping[str, float]) -> None:
    """Under the keys that llama.cpp and onecard read."""
    for name, key in GGUF_KEYS.items():
        if name in values:
            add = writer.add_int32 if name == "top_k" else writer.add_float32
            add(key, values[name])


def _write_metadata(writer: Any, plan: ConversionPlan) -> None:
    writer.add_type("model")
    if (name := _safe_name(plan)) is not None:
        writer.add_name(name)
    plan.family.write_parameters(writer, plan.config)
    writer.add_vocab_size(len(plan.vocabulary.tokens))
    writer.add_file_type(_FILE_TYPES[plan.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    plan.vocabulary.write(writer, plan.pre)
    _write_sampling(writer, sampling_of(plan.source.path).values)
    write_special(writer, plan.source.path, plan.vocabulary, plan.reference)
    if plan.family.is_encoder:
        writer.add_token_type_count(plan.config.integer("type_vocab_size", default=2))
    write_pooling(writer, plan.source.path)
