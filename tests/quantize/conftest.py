"""Sources and texts that several tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo
from demo import corpus
from quantize.done import Done
from quantize.order import Order
from quantize.work import run
from tests.quantize.zoo import build


class Silent:
    """Hears progress and says nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: set[str] = set()

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: float, total: float, *, left_s: float | None = None) -> None:
        assert 0 <= done <= total
        self.stages.add(what)


def chats(seed: int) -> str:
    """Text of the kind the demo model was trained on."""
    return "".join(
        "".join(f"<|im_start|>{m['role']}\n{m.get('content') or ''}<|im_end|>\n" for m in one.messages)
        + f"<|im_start|>assistant\n{one.completion}<|im_end|>\n"
        for one in corpus.examples(seed, 150)
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "chats.txt"
    path.write_text(chats(1))
    return path


@pytest.fixture(scope="session")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(chats(2))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama folder of its own, to be damaged."""
    return build("llama2", tmp_path / "small")


def make(source: Path, out: Path, *types: str, **more: object) -> Done:
    """One run, on one thread: two that share a core spend its time waiting for each other."""
    return run(Order(source, out, types, threads=1, **more), Silent())  # type: ignore[arg-type]


HF, GGUF = demo.HF_PATH, demo.GGUF_PATH
