"""Reads what a Hugging Face model folder says about itself: config.json and the headers of its safetensors files.

No weights are read and no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backends.backend import HeaderError
from backends.bnb import figures
from backends.bnb.layout import GENERATES, Gives, Layout, LayoutError, input_limit, read_layout
from backends.bnb.sight import Sight, is_of_language, sight_of
from backends.bnb.stored import EMBEDDINGS, HEADS, Place, corrections, find, has_own_head, own_head_remark, stored_dtype
from backends.bnb.text_files import chat_template, has_infill_marks
from backends.capabilities import counted, of_kind
from backends.files import foreign, model_files
from backends.files import tensors as stored_tensors
from backends.files.sampling_defaults import SamplingDefaults, of_folder
from backends.files.tensors import StoredTensor
from backends.images import image_max_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.files.adapters import Adapter
    from backends.messages import MediaKind

NO_DEFAULTS: Final = SamplingDefaults()
NO_OPTIONS: Final[Mapping[str, object]] = MappingProxyType({})
_CALLED_OTHERWISE: Final = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""As transformers' `attribute_map` of GPT-2 has it."""
_HEAD_SAMPLE_BYTES: Final = 2**20
"""Read of a head at a look; a load compares all of it."""


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
    draft: FolderInfo | None = field(default=None, repr=False)
    """The model that drafts for it; None: none does."""
    remarks: tuple[str, ...] = ()
    """What the operator should know, a sentence each."""
    sight: Sight | None = None
    """Its eyes; None where it reads text alone."""
    image_max_tokens: int = 0
    """Rows of one image at most, of models that see in many sizes."""
    adapters: tuple[Adapter, ...] = ()
    """Those that are configured, fitting or not."""

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
        return of_kind(self.gives, self.template, infills=self.infills, media=self.media)

    @property
    def media(self) -> tuple[MediaKind, ...]:
        """What it reads beside text."""
        return () if self.sight is None or self.gives != "text" else ("image",)

    def number(self, key: str, default: int = 0) -> int:
        """A count of the configuration, never below 0; GPT-2 and its kin call some otherwise."""
        value = self.config.get(key, self.config.get(_CALLED_OTHERWISE.get(key, "")))
        return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else default

    def forbids(self, kv_type: str) -> str | None:
        """Nothing: its cache has the type it computes in."""
        return None

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
    def n_ff(self) -> int:
        """Width within a feed-forward network; GPT-2's is four times the model's where nothing is said."""
        return self.number("intermediate_size") or 4 * self.number("hidden_size")

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.number("vocab_size")


def read(folder: Path, quantization: str = "none", options: Mapping[str, object] = NO_OPTIONS) -> FolderInfo:
    """Read and check a folder; `quantization` says how 16-bit weights shall be loaded, `options` what the model's table
    says of images. Raises HeaderError; blocks.
    """
    config = _object(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    figures.check_values(config, text)
    _check_format(config)
    stored = config.get("quantization_config")
    try:
        tensors, file_bytes = stored_tensors.read(folder)
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    _check_types(tensors, quantised=isinstance(stored, dict))
    sampling = read_sampling(folder)
    text = {"dtype": config.get("dtype", config.get("torch_dtype")), **text}
    sight = sight_of(folder, config, quantised=options.get("quantize_vision") is True)
    of_text = tensors if sight is None else [tensor for tensor in tensors if is_of_language(tensor.name)]
    if sight is not None:
        text["tie_word_embeddings"] = _ties(config, of_text)
    corrected, remarks = ({}, ()) if isinstance(stored, dict) else _corrected(folder, of_text, text)
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
        template=chat_template(folder) or (None if sight is None else sight.template),
        infills=has_infill_marks(folder),
        remarks=foreign.plain([*remarks, *sampling.remarks]),
        sight=sight,
        image_max_tokens=0 if sight is None else image_max_tokens(options),
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


def _ties(config: Mapping[str, Any], tensors: list[StoredTensor]) -> bool:
    """Whether a model with eyes ties its head to the embedding: the whole's word counts, then what is stored."""
    told = config.get("tie_word_embeddings")
    return told if isinstance(told, bool) else not any(tensor.name.endswith(HEADS) for tensor in tensors)


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


def _object(path: Path, most_bytes: int = model_files.CONFIG_BYTES) -> dict[str, Any]:
    try:
        return model_files.read_object(path, most_bytes)
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
