"""A GGUF that says one text whatever it is asked, so that the output of any family goes through the real server.

GPT-2's architecture over bytes. The embedding of tokens is zero and the one of positions an identity, so that the next
token depends on its position alone; where the text is over, and second best everywhere, is the token that ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from tests.models.bytebpe import byte_spelling

CONTEXT = 448
LETTERS = byte_spelling()
END = "<|end of text|>"
_WIDTH = CONTEXT + 64
"""One direction per position, and one in which the end token is always likely."""


@dataclass(frozen=True)
class Said:
    """What a model says, and to what."""

    marks: str
    """Stands in its template and is never written: by it the family is recognised."""
    prompt: str
    """What its template makes of every conversation."""
    text: str
    controls: tuple[str, ...] = ()
    """Literals that are one token each; every other byte is one."""


def write(path: Path, said: Said) -> Path:
    """Write a model that answers the prompt with the text."""
    controls = [END, *said.controls]
    n_prompt = len(_spelled(said.prompt, controls))
    template = f"{{% if false %}}{said.marks}{{% endif %}}{said.prompt}{{{{ '' }}}}"
    tokens = [*controls, *(LETTERS[byte] for byte in range(256)), LETTERS[32] * 2]
    types = [3] * len(controls) + [1] * 257
    while len(tokens) % 64:
        tokens.append(f"<unused{len(tokens)}>")
        types.append(5)
    ids = _spelled(said.text, controls)
    head = np.zeros((len(tokens), _WIDTH), np.float16)
    for position in range(CONTEXT):
        at = position - n_prompt + 1
        head[ids[at] if 0 <= at < len(ids) else 0, position] = 1
    head[0, CONTEXT] = 0.3 + 2 * float(head[0].astype(np.float64).sum()) / _WIDTH
    positions = np.eye(CONTEXT, _WIDTH, dtype=np.float32) * 8
    positions[:, CONTEXT] = 8
    _write(path, template, tokens, types, head, positions)
    return path


def _spelled(text: str, controls: Sequence[str]) -> list[int]:
    """The text as tokens: control tokens first, then bytes."""
    ids: list[int] = []
    while text:
        control = next((c for c in controls if text.startswith(c)), None)
        if control is None:
            ids += [len(controls) + byte for byte in text[0].encode()]
        else:
            ids.append(controls.index(control))
        text = text[len(control or "x") :]
    return ids


def _write(
    path: Path,
    template: str,
    tokens: list[str],
    types: list[int],
    head: NDArray[np.float16],
    positions: NDArray[np.float32],
) -> None:
    writer = GGUFWriter(path, "gpt2")
    writer.add_name("replay")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(_WIDTH // 64)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{LETTERS[32]} {LETTERS[32]}"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), _WIDTH), np.float16))
    writer.add_tensor("position_embd.weight", positions)
    writer.add_tensor("output.weight", head)
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    writer.add_tensor("output_norm.bias", np.zeros(_WIDTH, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(_WIDTH, np.float32))
        writer.add_tensor(f"blk.0.{name}.bias", np.zeros(_WIDTH, np.float32))
    for name, rows, columns in (
        ("attn_qkv", 3 * _WIDTH, _WIDTH),
        ("attn_output", _WIDTH, _WIDTH),
        ("ffn_up", 32, _WIDTH),
        ("ffn_down", _WIDTH, 32),
    ):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((rows, columns), np.float16))
        writer.add_tensor(f"blk.0.{name}.bias", np.zeros(rows, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
