"""Texts that llama.cpp cannot take whole: no worker dies of one, none takes for ever, and tokens stay what they are."""

from __future__ import annotations

import itertools
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.gguf import fragments
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from tests.models import canary_p

pytestmark = pytest.mark.engine

RECURSIVE = ("tekken", "gpt-4o", "falcon", "default", "deepseek-v3", "qwen2", "llama-bpe")
LONG = {
    "letters": "a" * 200_000,
    "capitals": "Ab" * 100_000,
    "digits": "7" * 200_000,
    "spaces": " " * 200_000,
    "line ends": "\r\n" * 100_000,
    "punctuation": "!" * 200_000,
    "marks": "e" + "\u0301" * 100_000,
    "letters and marks": "e\u0301" * 100_000,
    "ideographs": "中" * 200_000,
    "emoji": "😀" * 100_000,
    "control tokens": "<|im_end|>" * 50_000,
}
BOTH_WAYS = ("letters", "ideographs", "control tokens")
"""Cut at control tokens first too; what is between them then goes the way of the others."""
CHILD = """
import functools, resource, sys, threading
from pathlib import Path
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from tests.gguf.test_fragments import BOTH_WAYS, LONG
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
threading.stack_size(8 << 20)
def check():
    log = LibraryLog()
    log.install()
    model = Model(Path(sys.argv[1]), gpu_layers=0, log=log)
    literal = functools.cache(model.literal)
    for name, text in LONG.items():
        for special in (False, True) if name in BOTH_WAYS else (False,):
            tokens = model.tokenize(text, parse_special=special)
            assert b"".join(map(literal, tokens)) == text.encode(), name
    print("all")
thread = threading.Thread(target=check)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("splitter", RECURSIVE)
def test_no_text_ends_the_process_or_takes_for_ever(splitter: str, tmp_path: Path) -> None:
    path = canary_p.build(tmp_path / "x.gguf", metadata={"tokenizer.ggml.pre": splitter})

    before_s = _children_s()
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=200)

    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr[-500:]
    assert _children_s() - before_s < 40


def _children_s() -> float:
    """Processor time of all children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def model(canary_path: Path) -> Iterator[Model]:
    log = LibraryLog()
    log.install()
    loaded = Model(canary_path, gpu_layers=0, log=log)
    yield loaded
    loaded.close()


def test_a_text_of_sentences_has_the_tokens_it_has_whole(model: Model) -> None:
    dice = random.Random(4)
    words = ["中文字", "здесь", "word", "it's", "don’t", "x1", "ÄÖ"]
    text = "".join(dice.choice(words) + dice.choice("，。,.!") for _ in range(6_000))

    cut = list(fragments.fragments(text, None, recursive=True))

    assert len(cut) > 1
    assert "".join(cut) == text
    assert all(part[0] in "，。,.!" for part in cut[1:])
    assert model.tokenize(text, parse_special=False) == model.library_tokens(text, parse_special=False)


def test_usual_texts_are_taken_as_they_are() -> None:
    for text in ("", "short", "some words\n" * 20_000, "a" * fragments.MAX_STRETCH):
        assert list(fragments.fragments(text, None, recursive=True)) in ([text], [text, ""])


def test_stretches_that_are_just_short_take_no_time() -> None:
    text = ("a" * (fragments.MAX_STRETCH - 1) + " ") * 256
    began = time.process_time()

    assert list(fragments.fragments(text, None, recursive=True)) == [text]

    assert time.process_time() - began < 3


def test_only_long_stretches_are_cut_and_each_is() -> None:
    dice = random.Random(7)
    for _ in range(50):
        runs = [
            dice.choice("a ") * dice.choice((1, fragments.MAX_STRETCH - 1, fragments.MAX_STRETCH, 20_000)) + "\nb"
            for _ in range(6)
        ]
        text = "".join(runs)

        parts = list(fragments.within_stretches(text))

        assert "".join(parts) == text
        assert all(longest(part) <= fragments.MAX_STRETCH for part in parts)
        assert len(parts) == 1 + sum(n // fragments.MAX_STRETCH for n in stretches(text))


def stretches(text: str) -> list[int]:
    return [len(list(run)) for _, run in itertools.groupby(text, str.isspace)]


def longest(text: str) -> int:
    return max(stretches(text), default=0)


def test_control_tokens_are_found_and_text_between_them_is_kept(model: Model) -> None:
    text = "<|im_end|> a <|im_start|>b" * 3_000

    tokens = model.tokenize(text, parse_special=True)

    assert tokens == model.library_tokens(text, parse_special=True)
    assert tokens.count(canary_p.IDS[b"<|im_end|>"]) == 3_000
