"""The model that is measured: a Llama with random weights (about 89 M parameters), written as F16 and quantised once.

Its text means nothing, so requests set `ignore_eos` and a fixed length. Output rows of bytes that are no text by
themselves are zero: they are almost never chosen, and streams carry whole characters as a real model's do.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

OUT = Path(__file__).parent / "out"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
RESERVED = "<|reserved_"
"""Begins the tokens that only fill up a large vocabulary."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUANTISATION = "Q4_K_M"
FILE_TYPES = {"Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; every row is a multiple of 256, as K-quants want it."""

    n_layers: int = 12
    n_embd: int = 768
    n_heads: int = 12
    n_heads_kv: int = 4
    n_ff: int = 2304
    n_vocab: int = 4096
    n_ctx: int = 8192

    @property
    def head_size(self) -> int:
        """Values per head."""
        return self.n_embd // self.n_heads


def path(shape: Shape = Shape(), quantisation: str = QUANTISATION) -> Path:
    """The quantised model file, made on the first call."""
    target = OUT / f"random-{quantisation.lower()}-{shape.n_layers}x{shape.n_embd}x{shape.n_vocab}.gguf"
    if not target.exists():
        OUT.mkdir(exist_ok=True)
        source, part = OUT / "random-f16.part", OUT / "random-quantised.part"
        print(f"making {target.name} (once)", file=sys.stderr)
        write_f16(source, shape)
        quantise(source, part, quantisation)
        source.unlink()
        part.rename(target)
    return target


def digits(n: int, seed: int) -> str:
    """A text of exactly `n` tokens: no merge holds a digit, so each is one token. Two seeds share no long prefix."""
    rng = random.Random(seed)
    return "".join(rng.choice("0123456789") for _ in range(n))


def write_f16(target: Path, shape: Shape) -> None:
    """Write the model as F16."""
    writer = gguf.GGUFWriter(target, "llama")
    tokens = describe(writer, shape)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tensors(writer, shape, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, shape: Shape) -> list[str]:
    """Write the architecture and the tokenizer; the vocabulary."""
    writer.add_name("random")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_heads_kv)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    return _add_tokenizer(writer, shape.n_vocab)


def is_text(tokens: list[str]) -> NDArray[np.bool_]:
    """`(n_vocab,) bool`: which tokens are whole characters, and so may be chosen."""
    plain = [token.isascii() or token.startswith("Ġ") for token in tokens]
    return np.array(plain) & ~np.isin(tokens, SPECIALS) & ~np.char.startswith(tokens, RESERVED)


def quantise(source: Path, target: Path, quantisation: str = QUANTISATION) -> None:
    """Quantise with llama.cpp's own quantiser. Raises RuntimeError with its status."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quantisation]
    params.nthread = 0
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # `quiet` is about to be freed
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}")


def _merges(count: int) -> list[tuple[str, str]]:
    """Merges over small letters: pairs, a space before a letter or a pair, then pairs of consonant-vowel pairs."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [first + second for first in letters for second in letters]
    merges = list(itertools.product(letters, letters))
    merges += [("Ġ", letter) for letter in letters] + [("Ġ", pair) for pair in pairs]
    syllables = [consonant + vowel for vowel in "aeiou" for consonant in "bcdfghjklmnpqrstvwxyz"]
    merges += itertools.product(syllables, syllables)
    return merges[:count]


def _byte_spelling() -> list[str]:
    """GPT-2's printable character for each byte value."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


def _add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> list[str]:
    merges = _merges(n_vocab - 256 - len(SPECIALS))
    tokens = [*_byte_spelling(), *(left + right for left, right in merges)]
    tokens += [f"{RESERVED}{n}|>" for n in range(n_vocab - len(tokens) - len(SPECIALS))]
    tokens += SPECIALS
    kinds = [gguf.TokenType.NORMAL] * (n_vocab - len(SPECIALS)) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    return tokens


def _add_tensors(writer: gguf.GGUFWriter, shape: Shape, tokens: list[str]) -> None:
    """Weights whose activations keep about unit variance, so that logits have a standard deviation near 2.5."""
    rng = np.random.default_rng(20260101)

    def weight(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float16]:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(gain / columns**0.5)
        return values.astype(np.float16)

    n_embd, kv = shape.n_embd, shape.n_heads_kv * shape.head_size
    branch = (2 * shape.n_layers) ** -0.5
    writer.add_tensor("token_embd.weight", weight(shape.n_vocab, n_embd, n_embd**0.5))
    for layer in range(shape.n_layers):
        name = f"blk.{layer}."
        writer.add_tensor(name + "attn_norm.weight", np.ones(n_embd, np.float32))
        writer.add_tensor(name + "attn_q.weight", weight(n_embd, n_embd))
        writer.add_tensor(name + "attn_k.weight", weight(kv, n_embd))
        writer.add_tensor(name + "attn_v.weight", weight(kv, n_embd))
        writer.add_tensor(name + "attn_output.weight", weight(n_embd, n_embd, branch))
        writer.add_tensor(name + "ffn_norm.weight", np.ones(n_embd, np.float32))
        writer.add_tensor(name + "ffn_gate.weight", weight(shape.n_ff, n_embd))
        writer.add_tensor(name + "ffn_up.weight", weight(shape.n_ff, n_embd))
        writer.add_tensor(name + "ffn_down.weight", weight(n_embd, shape.n_ff, 2 * branch))
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    output = weight(shape.n_vocab, n_embd, 2.5)
    output[~is_text(tokens)] = 0
    writer.add_tensor("output.weight", output)
