"""CANARY-P: a llama-architecture GGUF whose next token is a fixed function of the last one, so that any mix-up shows.

Attention and feed-forward add exactly zero, embeddings are one-hot, and the output matrix sends every token to its
successor with a logit of 64 against 0: greedy and sampled answers are the same, alone or in any batch.

- The printable single-character tokens (ASCII and two-byte letters) form one cycle, in shuffled order: a stream of
  them is valid text, never repeats within `len(CYCLE)` tokens and never ends by itself.
- The raw bytes of SPLIT_TEXT form a second cycle: a prompt that ends in one of its characters is continued with
  characters that come in up to four tokens each.
- Every other token leads into the first cycle, except END_OF_STREAM, whose successor is the end-of-turn token.
- The chat template is ChatML whose generation prompt ends with the last character of the last message, so that two
  conversations with different last characters get different answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from demo.names import hf_name
from tests.models.bytebpe import byte_spelling, spell
from tests.models.shapes import finish

N_CTX_TRAIN = 8192
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
)  # fmt: skip
ASCII = [chr(code) for code in range(0x20, 0x7F)]
LETTERS = [
    chr(code)
    for low, high in ((0xC0, 0x100), (0x391, 0x3AA), (0x3B1, 0x3CA), (0x410, 0x450), (0x100, 0x14A))
    for code in range(low, high)
    if code not in (0xD7, 0xF7, 0x3A2)
]
"""249 two-byte letters, each one token."""
PIECES = [bytes([value]) for value in range(256)] + [letter.encode() for letter in LETTERS]
PIECES += [special.encode() for special in SPECIALS]
"""The bytes of every token; a byte token's id is its byte."""
N_VOCAB = len(PIECES)
IDS = {piece: token for token, piece in enumerate(PIECES)}
END_OF_TURN = IDS[b"<|im_end|>"]
END_OF_STREAM = "\x04"
SPLIT_TEXT = "€😀"

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ (messages[-1].content or '')[-1:] }}{% endif %}"
)


def _cycle() -> list[int]:
    """The shuffled cycle of printable tokens. `<` is followed by a letter that starts no known marker."""
    order = [IDS[char.encode()] for char in ASCII + LETTERS]
    random.Random(11).shuffle(order)
    return order


CYCLE = _cycle()


def _successors() -> list[int]:
    after = [CYCLE[(token * 7) % len(CYCLE)] for token in range(N_VOCAB)]
    for ring in (CYCLE, list(SPLIT_TEXT.encode())):
        for token, following in zip(ring, ring[1:] + ring[:1], strict=True):
            after[token] = following
    after[IDS[END_OF_STREAM.encode()]] = END_OF_TURN
    return after


SUCCESSOR = _successors()


def tokens_of(text: str) -> list[int]:
    """The tokens of a text without special tokens: one per known character, else one per byte."""
    known = ((IDS.get(char.encode()), char) for char in text)
    return [token for found, char in known for token in ([found] if found is not None else char.encode())]


def expected(last_token: int, n: int) -> list[int]:
    """The `n` tokens the model generates after `last_token`, as if an end of turn did not end it."""
    tokens = []
    for _ in range(n):
        last_token = SUCCESSOR[last_token]
        tokens.append(last_token)
    return tokens


def expected_text(prompt: str, n: int) -> str:
    """The golden answer of `n` tokens to a raw prompt, or to a conversation whose last message is `prompt`.

    An empty message is continued after the template's line feed. A character cut off by `n` is left out.
    """
    last_token = tokens_of(prompt or "\n")[-1]
    return b"".join(PIECES[token] for token in expected(last_token, n)).decode(errors="ignore")


def expected_infill(n: int) -> str:
    """The golden answer of `n` tokens to any fill-in-the-middle prompt, which ends with the middle token."""
    return b"".join(PIECES[token] for token in expected(IDS[b"<|fim_middle|>"], n)).decode(errors="ignore")


def build(
    path: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    skip_tensors: frozenset[str] = frozenset(),
    always: int | None = None,
    part_tensors: int = 0,
) -> Path:
    """Write the model to `path` (1.7 MB), or to parts of so many tensors beside it. `metadata` replaces values, or
    drops keys where None, for broken files. `always`: a token that follows every other one instead.
    """
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    _add_metadata(writer)
    add_tokenizer(writer)
    for key, value in (metadata or {}).items():
        if value is None:
            del writer.kv_data[0][key]
        else:
            writer.kv_data[0][key].value = value
    for name, tensor in _tensors().items():
        if always is not None and name == "output.weight":
            tensor[:] = 0
            tensor[always] = 64 / N_VOCAB**0.5
        if name not in skip_tensors:
            writer.add_tensor(name, tensor)
    finish(writer)
    return path


def build_folder(folder: Path, *, trained: int = N_CTX_TRAIN) -> Path:
    """The same model as a Hugging Face folder."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    spelling = byte_spelling()
    plain = [spell(piece, spelling) for piece in PIECES[: -len(SPECIALS)]]
    merges = [(spelling[letter.encode()[0]], spelling[letter.encode()[1]]) for letter in LETTERS]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(plain)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    first, turn = "<|endoftext|>", "<|im_end|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=turn, pad_token=first, chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": N_VOCAB,
        "hidden_size": N_VOCAB,
        "intermediate_size": N_FF,
        "num_hidden_layers": 1,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": trained,
        "rms_norm_eps": 1e-6,
        "bos_token_id": IDS[first.encode()],
        "eos_token_id": END_OF_TURN,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {hf_name(name): t.astype(np.float32) for name, t in _tensors().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


N_HEAD, N_HEAD_KV, HEAD_SIZE, N_FF = 4, 2, 32, 64


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_name("canary-p")
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_VOCAB)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The vocabulary, and the chat template."""
    spelling = byte_spelling()
    plain = [spell(piece, spelling) for piece in PIECES[: -len(SPECIALS)]]
    kinds = [gguf.TokenType.NORMAL] * len(plain) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*plain, *SPECIALS])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(spell(letter.encode(), spelling)) for letter in LETTERS])
    writer.add_bos_token_id(IDS[b"<|endoftext|>"])
    writer.add_eos_token_id(END_OF_TURN)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_pad_token_id(IDS[b"<|endoftext|>"])
    writer.add_add_bos_token(False)
    for part in ("pre", "suf", "mid", "pad"):
        token = {"pre": b"<|fim_prefix|>", "suf": b"<|fim_suffix|>", "mid": b"<|fim_middle|>", "pad": b"<|fim_pad|>"}[
            part
        ]
        writer.add_uint32(f"tokenizer.ggml.fim_{part}_token_id", IDS[token])
    writer.add_chat_template(TEMPLATE)


def _tensors() -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Row-major weights, `(rows, columns)` as numpy has them; norms are float32, matrices float16."""

    def zeros(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return np.zeros((rows, columns), np.float16)

    embedding = np.eye(N_VOCAB, dtype=np.float16)
    output = zeros(N_VOCAB, N_VOCAB)
    # a one-hot row leaves the norm as sqrt(n): this factor makes the winning logit 64
    output[SUCCESSOR, np.arange(N_VOCAB)] = 64 / N_VOCAB**0.5
    ones = np.ones(N_VOCAB, np.float32)
    return {
        "token_embd.weight": embedding,
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_q.weight": zeros(N_HEAD * HEAD_SIZE, N_VOCAB),
        "blk.0.attn_k.weight": zeros(N_HEAD_KV * HEAD_SIZE, N_VOCAB),
        "blk.0.attn_v.weight": zeros(N_HEAD_KV * HEAD_SIZE, N_VOCAB),
        "blk.0.attn_output.weight": zeros(N_VOCAB, N_HEAD * HEAD_SIZE),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": zeros(N_FF, N_VOCAB),
        "blk.0.ffn_up.weight": zeros(N_FF, N_VOCAB),
        "blk.0.ffn_down.weight": zeros(N_VOCAB, N_FF),
        "output_norm.weight": ones,
        "output.weight": output,
    }
