"""Files that are no model: about 50 broken GGUFs, each with exactly one fault, and who must refuse them at the latest.

The faults of a header (counts, lengths, types, shapes, offsets) are written byte by byte around one valid small file;
the faults of a model (hyperparameters, vocabulary, missing tensors) are CANARY-P with one thing changed.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.models import canary_p

U8, I32, U32, STRING, ARRAY, F32_VALUE, U64 = 0, 5, 4, 8, 9, 6, 10
F32, Q4_0, I8, I64 = 0, 2, 24, 27
ALIGNMENT = 32


@dataclass(frozen=True)
class Broken:
    """One broken file. `judge` is who must refuse it at the latest: the header reader, or the engine in its worker."""

    name: str
    judge: Literal["header", "engine"]
    make: Callable[[], bytes]


def string(text: bytes, *, claimed: int | None = None) -> bytes:
    """A length-prefixed string; `claimed` lies about the length."""
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    """One metadata pair."""
    return string(key) + struct.pack("<I", kind) + payload


def number(key: bytes, value: int) -> bytes:
    """A metadata pair with a uint32."""
    return pair(key, U32, struct.pack("<I", value))


def array(key: bytes, kind: int, count: int, payload: bytes) -> bytes:
    """A metadata pair with an array that claims `count` elements."""
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + payload)


def tensor(name: bytes, dims: tuple[int, ...], *, kind: int = F32, offset: int = 0, n_dims: int | None = None) -> bytes:
    """One tensor's entry; `n_dims` lies about the number of dimensions."""
    head = string(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return head + struct.pack(f"<{len(dims)}q", *dims) + struct.pack("<IQ", kind, offset)


@dataclass(frozen=True)
class Raw:
    """A GGUF file in pieces. The defaults make a well-formed one with a single tensor of 32 x 4 floats."""

    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    pairs: tuple[bytes, ...] = (
        pair(b"general.architecture", STRING, string(b"llama")),
        number(b"llama.context_length", 64),
        number(b"llama.embedding_length", 32),
        number(b"llama.block_count", 1),
        number(b"llama.feed_forward_length", 32),
        number(b"llama.attention.head_count", 1),
        pair(b"llama.attention.layer_norm_rms_epsilon", F32_VALUE, struct.pack("<f", 1e-5)),
        pair(b"tokenizer.ggml.model", STRING, string(b"gpt2")),
        array(b"tokenizer.ggml.tokens", STRING, 4, b"".join(map(string, (b"a", b"b", b"ab", b"c")))),
        array(b"tokenizer.ggml.merges", STRING, 1, string(b"a b")),
    )
    tensors: tuple[bytes, ...] = (tensor(b"token_embd.weight", (32, 4)),)
    data: bytes = bytes(512)

    def with_pairs(self, *more: bytes) -> Raw:
        """The same file with further metadata."""
        return replace(self, pairs=self.pairs + more)

    def without(self, key: bytes) -> Raw:
        """The same file without the metadata of a key."""
        return replace(self, pairs=tuple(entry for entry in self.pairs if not entry.startswith(string(key))))

    def encode(self) -> bytes:
        """The file's bytes."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_pairs)
        head += b"".join(self.pairs) + b"".join(self.tensors)
        return head + bytes(-len(head) % ALIGNMENT) + self.data


VALID = Raw()
HUGE = 2**62
ALIGN_KEY = b"general.alignment"


def _shaped(*dims: int, kind: int = F32, offset: int = 0, n_dims: int | None = None) -> Raw:
    return replace(VALID, tensors=(tensor(b"token_embd.weight", dims, kind=kind, offset=offset, n_dims=n_dims),))


def _two(first: bytes, second: bytes, offset: int) -> Raw:
    tensors = (tensor(first, (33,)), tensor(second, (33,), offset=offset))
    return replace(VALID, tensors=tensors, data=bytes(512))


_AT_THE_HEADER: dict[str, Raw] = {
    "bad_magic": replace(VALID, magic=b"FUGG"),
    "version_0": replace(VALID, version=0),
    "version_1": replace(VALID, version=1),
    "version_99": replace(VALID, version=99),
    "version_byte_swapped": replace(VALID, version=3 << 24),
    "n_tensors_2_62": replace(VALID, n_tensors=HUGE),
    "n_tensors_minus_1": replace(VALID, n_tensors=2**64 - 1),
    "n_tensors_one_too_many": replace(VALID, n_tensors=2, data=b""),
    "n_kv_2_62": replace(VALID, n_pairs=HUGE),
    "n_kv_minus_1": replace(VALID, n_pairs=2**64 - 1),
    "key_length_2_63": VALID.with_pairs(string(b"k", claimed=2**63) + struct.pack("<IB", U8, 1)),
    "key_length_minus_1": VALID.with_pairs(string(b"k", claimed=2**64 - 1) + struct.pack("<IB", U8, 1)),
    "key_empty": VALID.with_pairs(number(b"", 1)),
    "key_not_utf8": VALID.with_pairs(number(b"\xff\xfe\xfd", 1)),
    "key_duplicate": VALID.with_pairs(number(b"llama.block_count", 1)),
    "string_length_2_63": VALID.with_pairs(pair(b"general.name", STRING, string(b"x", claimed=2**63))),
    "value_type_13": VALID.with_pairs(pair(b"k", 13, bytes(8))),
    "value_type_2_32": VALID.with_pairs(pair(b"k", 2**32 - 1, bytes(8))),
    "array_type_13": VALID.with_pairs(array(b"k", 13, 1, bytes(8))),
    "array_of_arrays": VALID.with_pairs(array(b"k", ARRAY, 1, struct.pack("<IQ", U8, 1) + b"x")),
    "array_length_2_62": VALID.with_pairs(array(b"k", U64, HUGE, bytes(64))),
    "array_length_overflows": VALID.with_pairs(array(b"k", U64, 2**61, bytes(64))),
    "array_of_strings_2_62": VALID.without(b"tokenizer.ggml.tokens").with_pairs(
        array(b"tokenizer.ggml.tokens", STRING, HUGE, string(b"a"))
    ),
    "alignment_0": VALID.with_pairs(number(ALIGN_KEY, 0)),
    "alignment_3": VALID.with_pairs(number(ALIGN_KEY, 3)),
    "alignment_2_31": VALID.with_pairs(number(ALIGN_KEY, 2**31)),
    "alignment_of_wrong_type": VALID.with_pairs(pair(ALIGN_KEY, I32, struct.pack("<i", 32))),
    "tensor_name_too_long": replace(VALID, tensors=(tensor(b"t" * 64, (32, 4)),)),
    "tensor_name_length_2_62": replace(VALID, tensors=(string(b"t", claimed=HUGE) + bytes(24),)),
    "tensor_name_duplicate": _two(b"twice", b"twice", 160),
    "n_dims_0": _shaped(n_dims=0),
    "n_dims_5": _shaped(1, 1, 1, 1, 1),
    "n_dims_2_31": _shaped(32, 4, n_dims=2**31),
    "dim_0": _shaped(32, 0),
    "dim_negative": _shaped(32, -4),
    "dims_product_overflows": _shaped(2**32, 2**32, 2),
    "dims_product_wraps_to_small": _shaped(2**33, 2**33, 2**33),
    "nbytes_overflows": _shaped(2**61, kind=I64),
    "data_size_overflows": replace(
        VALID,
        tensors=(tensor(b"a", (2**63 - 64,), kind=I8), tensor(b"b", (2**63 - 64,), kind=I8, offset=2**63 - 64)),
    ),
    "tensor_type_unknown": _shaped(32, 4, kind=99),
    "tensor_type_removed": _shaped(32, 4, kind=4),
    "row_not_whole_blocks": _shaped(31, 4, kind=Q4_0),
    "offset_unaligned": _shaped(32, 4, offset=7),
    "offset_out_of_file": _shaped(32, 4, offset=2**40),
    "offset_2_63": _shaped(32, 4, offset=2**63),
    "offset_overlapping": _two(b"a", b"b", 32),
    "offset_packed_without_alignment": _two(b"a", b"b", 132),
    "shape_beyond_file": _shaped(32, 4096),
    "data_cut": replace(VALID, data=bytes(500)),
    "data_missing": replace(VALID, data=b""),
}


def _canary(metadata: dict[str, Any] | None = None, *, without: str | None = None) -> Callable[[], bytes]:
    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            skip = frozenset({without} if without else ())
            return canary_p.build(Path(folder) / "x.gguf", metadata=metadata, skip_tensors=skip).read_bytes()

    return make


_IN_THE_MODEL: dict[str, Callable[[], bytes]] = {
    "head_count_0": _canary({"llama.attention.head_count": 0}),
    "head_count_kv_above_head_count": _canary({"llama.attention.head_count_kv": 64}),
    "block_count_0": _canary({"llama.block_count": 0}),
    "block_count_2_31": _canary({"llama.block_count": 2**31}),
    "block_count_missing": _canary({"llama.block_count": None}),
    "embedding_length_0": _canary({"llama.embedding_length": 0}),
    "embedding_length_other_than_tensors": _canary({"llama.embedding_length": 1024}),
    "context_length_missing": _canary({"llama.context_length": None}),
    "rope_dimension_of_other_heads": _canary({"llama.rope.dimension_count": 31}),
    "architecture_unknown": _canary({"general.architecture": "imaginary"}),
    "architecture_missing": _canary({"general.architecture": None}),
    "tokenizer_missing": _canary({"tokenizer.ggml.model": None}),
    "tokenizer_unknown": _canary({"tokenizer.ggml.model": "imaginary"}),
    "pre_tokenizer_unknown": _canary({"tokenizer.ggml.pre": "imaginary"}),
    "tokens_missing": _canary({"tokenizer.ggml.tokens": None}),
    "tokens_fewer_than_embeddings": _canary({"tokenizer.ggml.tokens": ["a", "b"]}),
    "merges_missing": _canary({"tokenizer.ggml.merges": None}),
    "embeddings_missing": _canary(without="token_embd.weight"),
    "layer_tensor_missing": _canary(without="blk.0.ffn_down.weight"),
}

_NO_GGUF: dict[str, Callable[[], bytes]] = {
    "empty_file": lambda: b"",
    "magic_only": lambda: b"GGUF",
    "text_file": lambda: b"Once upon a time there was a model.\n" * 100,
    "json_file": lambda: b'{"architectures": ["LlamaForCausalLM"]}',
    "pickle_file": lambda: b"PK\x03\x04" + bytes(4096),
    "zeros": lambda: bytes(4096),
    "header_only": lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
}

TABLE: tuple[Broken, ...] = (
    *(Broken(name, "header", raw.encode) for name, raw in _AT_THE_HEADER.items()),
    *(Broken(name, "header", make) for name, make in _NO_GGUF.items()),
    *(Broken(name, "engine", make) for name, make in _IN_THE_MODEL.items()),
)
"""Every broken file, by name unique."""


def cuts(whole: bytes, *, step: int = 4096) -> Iterator[tuple[int, bytes]]:
    """The file cut after every `step` bytes: length and content. None of them holds its last tensor whole."""
    for length in range(step, len(whole), step):
        yield length, whole[:length]
