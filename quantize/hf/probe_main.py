"""Child process: tokenizes probe lines with llama.cpp under several pre-tokenizers and counts what differs.

Request on stdin and answer on stdout are JSON; see `pretokenizer`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp

from quantize.orphan import die_with_parent

_STRING_OVERRIDE = 3
_PRE = b"tokenizer.ggml.pre"


def main() -> None:
    """One request, one answer."""
    die_with_parent()
    request = json.load(sys.stdin)
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(_only_errors)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    wrong: dict[str, int] = {}
    for candidate in request["candidates"]:
        n_wrong = _wrong_lines(request["file"], candidate, request["lines"], request["expected"])
        if n_wrong is not None:
            wrong[candidate] = n_wrong
        if n_wrong == 0:
            break
    sys.stdout.write(json.dumps(wrong))


def _only_errors(level: int, text: bytes, user_data: Any) -> None:
    del user_data
    if level >= 4:
        sys.stderr.write(text.decode("utf-8", "replace"))


def _wrong_lines(file: str, pre: str, lines: list[str], expected: list[list[int]]) -> int | None:
    """Lines with other tokens; None where this llama.cpp does not know the pre-tokenizer."""
    overrides = (llama_cpp.llama_model_kv_override * 2)()
    overrides[0].tag = _STRING_OVERRIDE
    overrides[0].key = _PRE
    overrides[0].value.val_str = pre.encode()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    params.kv_overrides = overrides
    model = llama_cpp.llama_model_load_from_file(file.encode(), params)
    if not model:
        return None
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_wrong = sum(_tokens(vocab, line) != ids for line, ids in zip(lines, expected, strict=True))
    llama_cpp.llama_model_free(model)
    return n_wrong


def _tokens(vocab: Any, text: str) -> list[int]:
    data = text.encode()
    room = len(data) + 16
    buffer = (llama_cpp.llama_token * room)()
    n = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, room, False, True)
    return list(buffer[: max(0, n)])


if __name__ == "__main__":
    main()
