"""Reads what a Hugging Face model folder says about itself: config.json and the headers of its safetensors files.

Every number is checked against the file's size. No weights are read and no code of the folder is run.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backends.backend import HeaderError
from backends.bnb import figures
from backends.bnb.layout import GENERATES, Gives, Layout, LayoutError, input_limit, read_layout
from backends.bnb.stored import EMBEDDINGS, HEADS, Place, corrections, find, has_own_head, own_head_remark, stored_dtype
from backends.bnb.text_files import chat_template, has_infill_marks
from backends.capabilities import counted, of_kind
from backends.files import foreign, model_files
from backends.files.sampling_defaults import SamplingDefaults, of_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
MAX_HEADER_BYTES: Final = 32 * 2**20
"""A third of the format's own limit: 300 000 tensors."""
MAX_FILES: Final = 1000
MAX_TENSORS: Final = 1_000_000
NO_DEFAULTS: Final = SamplingDefaults()
_HEAD_SAMPLE_BYTES: Final = 2**20
"""Read of a head at a look; a load compares all of it."""
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in the folder."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    file: str = ""
    """Name in the folder."""
    start: int = 0
    """Byte in that file."""

    @property
    def n_elements(self) -> int:
        """Of its shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FolderInfo:
    """What a folder says, as far as the server needs it."""

    backend: ClassVar[str] = "bnb"

    architecture: str
    config: Mapping[str, Any] = field(repr=False)
    """The text model's part of config.json."""
    quantization: Mapping[str, Any]
    """How the weights are stored or shall be loaded; empty for 16 bits."""
    stored_quantised: bool
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    file_bytes: int
    longest_token_bytes: int = 0
    layout: Layout = GENERATES
    """What the model is for, and how its vectors are made."""
    corrected: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the text model's configuration that the tensors contradict, as they are served."""
    sampling: SamplingDefaults = NO_DEFAULTS
    """How its makers want tokens chosen."""
    template: str | None = field(default=None, repr=False)
    """The chat template that conversations with tools take."""
    infills: bool = False
    """The vocabulary has the tokens for fill-in-the-middle."""
    remarks: tuple[str, ...] = ()
    """What the operator should know, a sentence each."""

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        told = {"architecture": self.architecture}
        stored = self.config.get("quantization_config")
        if not stored:
            told["parameters"] = counted(sum(tensor.n_elements for tensor in self.tensors))
        told["quantisation"] = "stored quantised" if stored else "none"
        return dict(zip(told, foreign.plain(told.values()), strict=True))

    @property
    def gives(self) -> Gives:
        """What the model answers with."""
        return self.layout.gives

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return of_kind(self.gives, self.template, infills=self.infills)

    def number(self, key: str, default: int = 0) -> int:
        """A count of the configuration, never below 0."""
        value = self.config.get(key)
        return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def tokens_cover_text(self) -> bool:
        """Not known before the tokenizer is loaded."""
        return False

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context the model was trained for."""
        trained = self.number("max_position_embeddings")
        return input_limit(trained, self.config) if self.gives != "text" else trained

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return self.number("num_hidden_layers")

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.number("vocab_size")


def read(folder: Path, quantization: str = "none") -> FolderInfo:
    """Read and check a folder; `quantization` says how 16-bit weights shall be loaded. Raises HeaderError; blocks."""
    config = _object(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    figures.check_values(config, text)
    _check_format(config)
    stored = config.get("quantization_config")
    tensors: list[StoredTensor] = []
    file_bytes = 0
    for path in _files(folder):
        found, n_bytes = _tensors(path)
        tensors += found
        file_bytes += n_bytes
    if len(tensors) > MAX_TENSORS:
        raise HeaderError(f"the folder announces {len(tensors)} tensors, more than there can be")
    _check_types(tensors, quantised=isinstance(stored, dict))
    sampling = read_sampling(folder)
    text = {"dtype": config.get("dtype", config.get("torch_dtype")), **text}
    corrected, remarks = ({}, ()) if isinstance(stored, dict) else _corrected(folder, tensors, text)
    figures.check_counts(config, [tensor.shape for tensor in tensors])
    return FolderInfo(
        architecture=config.get("model_type") or "",
        config={**text, **corrected},
        quantization=stored if isinstance(stored, dict) else _asked(quantization),
        stored_quantised=isinstance(stored, dict),
        tensors=tuple(tensors),
        file_bytes=file_bytes,
        layout=_layout(folder, config),
        corrected=corrected,
        sampling=sampling,
        template=chat_template(folder),
        infills=has_infill_marks(folder),
        remarks=foreign.plain([*remarks, *sampling.remarks]),
    )


def read_sampling(folder: Path) -> SamplingDefaults:
    """What generation_config.json says of sampling; what cannot be read there is a remark."""
    name = "generation_config.json"
    if not (folder / name).exists():
        return NO_DEFAULTS
    try:
        return of_folder(_object(folder / name))
    except HeaderError as problem:
        return SamplingDefaults(remarks=(f"{problem}: the model's sampling defaults are not known",))


def places(folder: Path, tensors: Iterable[StoredTensor]) -> list[Place]:
    """Where the tensors of a folder lie."""
    return [Place(t.name, folder / t.file, t.start, t.n_bytes, t.dtype, t.shape) for t in tensors]


def _corrected(
    folder: Path, tensors: list[StoredTensor], text: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the tensors say otherwise than config.json, and the sentences for it; of the head only its beginning."""
    known = places(folder, tensors)
    found = corrections(known, text)
    told: list[str] = []
    bytes_of: dict[str, int] = {}
    for tensor in tensors:
        bytes_of[tensor.dtype] = bytes_of.get(tensor.dtype, 0) + tensor.n_bytes
    if (dtype := stored_dtype(text["dtype"], bytes_of)) is not None:
        told.append(f"config.json says dtype = {text['dtype']}, which is taken, and the weights are stored in {dtype}")
    head = find(known, HEADS)
    tied = text.get("tie_word_embeddings") is True
    if head and tied and has_own_head(find(known, EMBEDDINGS), head, tied=True, limit_bytes=_HEAD_SAMPLE_BYTES):
        found["tie_word_embeddings"] = (False, own_head_remark(head))
    return {key: value for key, (value, _) in found.items()}, (*told, *(remark for _, remark in found.values()))


def _check_format(config: Mapping[str, Any]) -> None:
    """Formats of other libraries that have no `quantization_config`. Raises HeaderError."""
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx and "quantization_config" not in config:
        raise HeaderError(
            f"the weights are quantised by MLX ({str(mlx['bits'])[:4]} bits), which is for Apple's machines. "
            "hint: take the unquantised folder, or a GGUF file"
        )


def _check_types(tensors: list[StoredTensor], *, quantised: bool) -> None:
    """Eight-bit floats are numbers only with their scales. Raises HeaderError."""
    found = next((tensor for tensor in tensors if tensor.dtype.startswith(("F8", "F4"))), None)
    if found is not None and not quantised:
        raise HeaderError(
            f"tensor {found.name[:80]!r} is stored in {found.dtype}, which this backend does not compute with. "
            "hint: take the folder in 16 bits, or a GGUF file"
        )


def _layout(folder: Path, config: dict[str, Any]) -> Layout:
    try:
        return read_layout(folder, config)
    except LayoutError as error:
        raise HeaderError(str(error)) from None


def _asked(quantization: str) -> dict[str, Any]:
    return {
        "bnb-4bit": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        "bnb-8bit": {"load_in_8bit": True},
    }.get(quantization, {})


def _files(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        _check_not_pickled(folder)
        if not (folder / SINGLE).exists():
            _check_other_weights(folder)
            raise HeaderError(
                f"the folder has no weights: neither {SINGLE} nor {INDEX}. hint: were they downloaded completely?"
            )
        return [folder / SINGLE]
    placed = _object(folder / INDEX, model_files.INDEX_BYTES).get("weight_map")
    names = sorted(set(placed.values())) if isinstance(placed, dict) and _all_text(placed.values()) else []
    if not names or len(names) > MAX_FILES:
        raise HeaderError(f"{INDEX} names no files, or more than {MAX_FILES}")
    if any(Path(name).name != name for name in names):
        raise HeaderError(f"{INDEX} names files outside of the folder")
    if missing := [name for name in names if not model_files.is_there(folder / name)]:
        raise HeaderError(
            f"{INDEX} names {model_files.shown(missing[0])}, which is not there ({len(missing)} of {len(names)} files "
            "are missing). hint: was the folder downloaded completely?"
        )
    return [folder / name for name in names]


def _check_other_weights(folder: Path) -> None:
    """Raises HeaderError where there are weights of another kind, or a download that has not ended."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        raise HeaderError(f"the folder holds GGUF files, each a model. hint: name one: {', '.join(ggufs[:4])}")
    if found := next((name for name in names if foreign.is_unfinished(name)), None):
        raise HeaderError(f"{found} is a download that is not finished. hint: let it end, or start it again")
    others = [name for name in names if name.lower().endswith((".onnx", ".h5", ".msgpack", ".tflite", ".nemo", ".npz"))]
    if others:
        raise HeaderError(
            f"the folder's weights are {others[0]}, which onecard does not read. hint: take the model's safetensors"
        )


def _check_not_pickled(folder: Path) -> None:
    """Raises HeaderError where there are weights, but only such as can run code when they are read."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES) if folder.is_dir() else []
    if pickles and not (folder / SINGLE).exists():
        raise HeaderError(
            f"the weights are pickled ({', '.join(pickles[:3])}), and a pickle can run code when it is read. "
            f"hint: take the model's safetensors, or convert them on a machine that trusts them"
        )


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _tensors(path: Path) -> tuple[list[StoredTensor], int]:
    """The tensors of one file, and its size."""
    try:
        with model_files.opened(path) as file:
            start, size = file.at(0, foreign.PROBE_BYTES), file.size
            length = int.from_bytes(start[:8], "little")
            if length > min(MAX_HEADER_BYTES, size - 8) or not start.strip(b"\0"):
                raise HeaderError(
                    f"{path.name} announces a header of {length} bytes, more than it can hold: "
                    f"{foreign.no_safetensors(start, size)}"
                )
            table = model_files.parsed(file.at(8, length), path.name)
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    if not isinstance(table, dict):
        raise HeaderError(f"the header of {path.name} is not a JSON object")
    data_bytes = size - 8 - length
    return [
        _tensor(path.name, name, e, data_bytes, 8 + length) for name, e in table.items() if name != "__metadata__"
    ], size


def _tensor(file: str, name: str, entry: Any, data_bytes: int, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS[dtype]
        counts = (*shape, begin, end)
        if not all(isinstance(n, int) and n >= 0 for n in counts) or len(shape) > 16:
            raise ValueError
        wanted = math.prod(shape) * bits
    except (KeyError, TypeError, ValueError):
        raise HeaderError(f"{file} describes tensor {name[:80]!r} in a way that is not understood") from None
    if end > data_bytes or wanted != (end - begin) * 8:
        raise HeaderError(f"tensor {name[:80]!r} does not fit into {file}: it is cut or wrong")
    return StoredTensor(name, tuple(shape), dtype, end - begin, file, data_start + begin)


def _object(path: Path, most_bytes: int = model_files.CONFIG_BYTES) -> dict[str, Any]:
    try:
        return model_files.read_object(path, most_bytes)
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
