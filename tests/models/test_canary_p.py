"""CANARY-P against llama.cpp itself: the golden answers are the model's, alone and in one batch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests.models import canary_p

PROMPTS = ["hello", "a", "one two <", "Ж", "x" * 300, "€", "😀", "中", "tab\t", "line\n", "q?", "Ω"]


@pytest.fixture(scope="module")
def model(canary_path: Path) -> Iterator[Any]:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    loaded = llama_cpp.llama_model_load_from_file(str(canary_path).encode(), params)
    assert loaded
    yield loaded
    llama_cpp.llama_model_free(loaded)


def tokenize(model: Any, text: str) -> list[int]:
    vocab = llama_cpp.llama_model_get_vocab(model)
    raw = text.encode()
    tokens = (ctypes.c_int32 * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), False, False)
    return tokens[:count]


def greedy(model: Any, prompts: list[list[int]], n_tokens: int) -> list[list[int]]:
    """Continue all prompts in one batch per step."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch = 768 * len(prompts), len(prompts), 2048
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(2048, 0, 1)
    n_vocab = canary_p.N_VOCAB
    answers: list[list[int]] = [[] for _ in prompts]
    pending = [list(prompt) for prompt in prompts]
    depth = [0] * len(prompts)
    for _ in range(n_tokens):
        rows: list[int] = []
        n = 0
        for sequence, tokens in enumerate(pending):
            for token in tokens:
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, depth[sequence], 1
                batch.seq_id[n][0], batch.logits[n] = sequence, 0
                depth[sequence] += 1
                n += 1
            batch.logits[n - 1] = 1
            rows.append(n - 1)
        batch.n_tokens = n
        assert llama_cpp.llama_decode(context, batch) == 0
        for sequence, row in enumerate(rows):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), shape=(n_vocab,))
            answers[sequence].append(int(logits.argmax()))
            pending[sequence] = [answers[sequence][-1]]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return answers


def test_cycle_holds_every_printable_token_once() -> None:
    assert len(set(canary_p.CYCLE)) == len(canary_p.ASCII) + len(canary_p.LETTERS)


def test_stream_holds_no_marker_an_output_parser_might_wait_for() -> None:
    text = canary_p.expected_text(" ", 2 * len(canary_p.CYCLE))
    assert not any(marker in text for marker in ("<t", "<|", "</", "<T"))
    assert "\ufffd" not in text


def test_split_cycle_spells_whole_characters() -> None:
    assert canary_p.expected_text("€", 14) == "😀€" * 2
    assert canary_p.expected_text("€", 3) == ""


@pytest.mark.engine
def test_llama_cpp_tokenizes_like_the_golden_tokenizer(model: Any) -> None:
    for text in [*PROMPTS, "Grüße, мир! №5 — ok", "  two  spaces ", "don't 123\r\n"]:
        assert tokenize(model, text) == canary_p.tokens_of(text)


@pytest.mark.engine
def test_alone_every_answer_is_the_golden_one(model: Any) -> None:
    for prompt in PROMPTS:
        tokens = canary_p.tokens_of(prompt)
        assert greedy(model, [tokens], 40) == [canary_p.expected(tokens[-1], 40)]


@pytest.mark.engine
def test_in_one_batch_every_answer_is_the_golden_one(model: Any) -> None:
    prompts = [canary_p.tokens_of(prompt) for prompt in PROMPTS]
    assert greedy(model, prompts, 400) == [canary_p.expected(tokens[-1], 400) for tokens in prompts]


@pytest.mark.engine
def test_end_of_stream_ends_the_turn(model: Any) -> None:
    tokens = canary_p.tokens_of("over" + canary_p.END_OF_STREAM)
    assert greedy(model, [tokens], 1) == [[canary_p.END_OF_TURN]]
    vocab = llama_cpp.llama_model_get_vocab(model)
    assert llama_cpp.llama_vocab_is_eog(vocab, canary_p.END_OF_TURN)
    assert llama_cpp.llama_vocab_fim_mid(vocab) == canary_p.IDS[b"<|fim_middle|>"]
