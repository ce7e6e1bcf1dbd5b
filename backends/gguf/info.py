"""What the header of a GGUF file says of the model in it; read and checked by `backends.gguf.header`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from backends.capabilities import counted, of_kind
from backends.files import adapters, foreign
from backends.files.sampling_defaults import SamplingDefaults, of_gguf
from backends.gguf import vocabulary
from backends.kv_types import BLOCK, is_quantised, keys_and_values

if TYPE_CHECKING:
    from backends.files.adapters import Adapter
    from backends.gguf.projector import Projector
    from backends.messages import MediaKind

Value = int | float | bool | str | list["Value"]

ENCODERS: Final = frozenset(
    {
        "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert",
        "gemma-embedding",
    }
)  # fmt: skip
"""Architectures in which every token sees all others: they give vectors, not text."""
EXPERT_WEIGHTS: Final = ("ffn_up_exps", "ffn_down_exps", "ffn_gate_exps", "ffn_gate_up_exps")
FEED_FORWARD_WEIGHTS: Final = ("ffn_up.", "ffn_down.", "ffn_gate.")
_LAST_POOLING: Final = 3
_RANK_POOLING: Final = 4
_NO_FLASH_ATTENTION: Final = frozenset({"grok"})
"""Architectures for which llama.cpp turns it off."""


@dataclass(frozen=True)
class Tensor:
    """One entry of the tensor table."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True)
class HeaderInfo:
    """What a header says, as far as the server needs it."""

    backend: ClassVar[str] = "gguf"

    architecture: str
    file_bytes: int
    metadata: Mapping[str, Value]
    """Without the values of long arrays."""
    array_lengths: Mapping[str, int]
    longest_token_bytes: int
    """Bytes of the longest entry of the vocabulary; 0 without one."""
    tensors: tuple[Tensor, ...] = field(repr=False)
    infills: bool = False
    """The vocabulary has the tokens for fill-in-the-middle."""
    expert_layers: int | None = None
    """What the operator wants of them in host memory; None: choose."""
    ffn_layers: int | None = None
    projector: Projector | None = field(default=None, repr=False)
    """Its eyes or ears; None: it reads text alone."""
    draft: HeaderInfo | None = field(default=None, repr=False)
    """The model that drafts for it; None: none does."""
    mtp: bool = False
    """Its own layer that predicts further tokens drafts."""
    adapters: tuple[Adapter, ...] = ()
    """Those that are configured, fitting or not."""

    def number(self, key: str, default: int = 0) -> int:
        """A count of the architecture, e.g. `block_count`, never below 0; of a per-layer array its largest."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        values = value if isinstance(value, list) else [value]
        return max((max(0, v) for v in values if isinstance(v, int)), default=default)

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        by_type: dict[str, int] = {}
        for tensor in self.tensors:
            by_type[tensor.type_name] = by_type.get(tensor.type_name, 0) + tensor.n_bytes
        told = {"architecture": self.architecture}
        told["parameters"] = counted(sum(math.prod(tensor.shape) for tensor in self.tensors))
        told["quantisation"] = max(by_type, key=lambda name: by_type[name], default="")
        if self.projector is not None:
            told["projector"] = self.projector.path.name
            if "image" in self.projector.kinds:
                told["image_max_tokens"] = str(self.projector.image_max_tokens)
            if "audio" in self.projector.kinds:
                told["max_audio_s"] = f"{self.projector.max_audio_s:g}"
        if isinstance(licence := self.metadata.get("general.license"), str):
            told["licence"] = licence
        return dict(zip(told, foreign.plain(told.values()), strict=True))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context the model was trained for."""
        return self.number("context_length")

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return self.number("block_count")

    @property
    def gives(self) -> Literal["text", "vectors", "scores"]:
        """What the model answers with: a pooling in the metadata makes a decoder an embedding model or a reranker."""
        pooling = self.number("pooling_type")
        if pooling == _RANK_POOLING:
            return "scores"
        return "vectors" if pooling > 0 or self.architecture in ENCODERS else "text"

    @property
    def tells_at_the_end(self) -> bool:
        """A causal model whose last token gives the vector or the score, so that it can read in pieces."""
        causal = self.metadata.get(f"{self.architecture}.attention.causal", True) is True
        last = self.number("pooling_type") in (_LAST_POOLING, _RANK_POOLING)
        return causal and last and self.architecture not in ENCODERS

    @property
    def wants_whole_inputs(self) -> bool:
        """An embedding model or reranker that reads an input in one pass."""
        return self.gives != "text" and not self.tells_at_the_end

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.array_lengths.get("tokenizer.ggml.tokens", 0) or self.number("vocab_size")

    @property
    def tokens_cover_text(self) -> bool:
        """Whether every character of a text is in some token: word pieces drop spaces and unknown words."""
        return self.metadata.get("tokenizer.ggml.model") in ("gpt2", "llama")

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        sources = (self.metadata.get(key) for key in ("tokenizer.chat_template.tool_use", "tokenizer.chat_template"))
        template = next((source for source in sources if isinstance(source, str) and source), None)
        return of_kind(self.gives, template, infills=self.infills, media=self.media)

    @property
    def media(self) -> Sequence[MediaKind]:
        """What it reads beside text."""
        return () if self.projector is None or self.gives != "text" else self.projector.kinds

    def head_sizes(self, suffix: str = "") -> tuple[int, int]:
        """Values per head of a key and of a value; `_swa`: in layers with a sliding window."""
        n_heads = max(self.number("attention.head_count", 1), 1)
        plain = self.number("embedding_length") // n_heads
        key = self.number("attention.key_length", plain)
        value = self.number("attention.value_length", plain)
        if suffix:
            key = self.number(f"attention.key_length{suffix}", key)
            value = self.number(f"attention.value_length{suffix}", value)
        return key, value

    def forbids(self, kv_type: str) -> str | None:
        """Types with blocks need heads that divide into them; values with blocks need flash attention as well."""
        sides = zip(("keys", "values"), keys_and_values(kv_type), self.head_sizes(), strict=True)
        for side, kind, n_values in sides:
            if is_quantised(kind) and n_values % BLOCK:
                return (
                    f"kv_type {kind} holds blocks of {BLOCK} values, and a head's {side} of this model are {n_values}. "
                    "hint: kv_type f16"
                )
        keys, values = keys_and_values(kv_type)
        if is_quantised(values) and self.architecture in _NO_FLASH_ATTENTION:
            return (
                f"values of kv_type {values} need flash attention, which llama.cpp has not for {self.architecture} "
                f"models. hint: kv_type {keys}/f16"
            )
        return None

    @property
    def sampling(self) -> SamplingDefaults:
        """How its makers want tokens chosen."""
        return of_gguf(self.metadata)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the operator should know, a sentence each."""
        told = [*self.sampling.remarks, *vocabulary.remarks(self.metadata, self.n_vocab)]
        if self.projector is not None and self.projector.miscounts:
            told.append(
                f"llama.cpp computes the tower of {self.projector.path.name} one position off (its issue 25814), so "
                "that it sees less well than its makers' model; the Hugging Face folder of the model is right"
            )
        if self.projector is not None and self.projector.has_ears and self.projector.why_deaf is not None:
            told.append(f"{self.projector.path.name} has ears that are not used: {self.projector.why_deaf}")
        return foreign.plain([*told, *adapters.remarks(self.adapters)])

    def host_layers(self, kind: Literal["expert_layers", "ffn_layers"]) -> int:
        """How many layers have weights of a kind that can lie in host memory alone, counted from the first layer."""
        marks = EXPERT_WEIGHTS if kind == "expert_layers" else FEED_FORWARD_WEIGHTS
        numbers = [
            int(number)
            for head, number, rest in (tensor.name.split(".", 2) for tensor in self.tensors if "ffn_" in tensor.name)
            if head == "blk" and number.isdecimal() and rest.startswith(marks)
        ]
        return max(numbers, default=-1) + 1

    @cached_property
    def layer_of(self) -> tuple[int | None, ...]:
        """Of each tensor the number of its block; None for what is in none."""
        parts = (tensor.name.split(".", 2) for tensor in self.tensors)
        return tuple(int(p[1]) if p[0] == "blk" and len(p) > 2 and p[1].isdecimal() else None for p in parts)

    @cached_property
    def has_output(self) -> bool:
        """Whether the output layer has weights of its own; else it uses the input embedding."""
        return any(tensor.name == "output.weight" for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)
