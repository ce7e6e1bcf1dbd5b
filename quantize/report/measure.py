"""Measures every output of a run, and whatever else it is asked to compare, against the source."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from backends.backend import Header
from backends.gguf import header
from backends.gguf.info import HeaderInfo
from quantize import memory
from quantize.errors import QuantizeError
from quantize.files import replacing
from quantize.hf.safetensors import Shard
from quantize.hf.source import shard_files
from quantize.order import Order, Teller
from quantize.report import card as cards
from quantize.report.card import Card, Line, contexts_for
from quantize.report.picture import as_svg
from quantize.scores.compare import Scores, compare
from quantize.words import duration

SHIPPED_TEXT = "alice.txt"


@dataclass(frozen=True)
class Subject:
    """Something to measure."""

    type_name: str
    path: Path
    remarks: tuple[str, ...] = ()


def measure(
    order: Order, reference: Subject, info: HeaderInfo | None, subjects: Sequence[Subject], tell: Teller
) -> Card:
    """The report card; the reference is its first line."""
    with ExitStack() as stack:
        text = order.text or stack.enter_context(
            importlib.resources.as_file(importlib.resources.files("quantize") / "texts" / SHIPPED_TEXT)
        )
        n_ctx = info.n_ctx_train if info and info.n_ctx_train else 512
        contexts = contexts_for(info.n_ctx_train if info else None, order.context if order.fit_bytes else None)
        lines = [
            _line(order, contexts, subject, info, _scores(order, reference, subject, text, n_ctx, tell))
            for subject in [reference, *subjects]
        ]
        n_tokens = lines[0].scores.quality.n_tokens if lines[0].scores else 0
        return Card(order.model_name, text.name, n_tokens, order.fit_bytes, order.device, contexts, tuple(lines))


def write(card: Card, order: Order) -> list[Path]:
    """Markdown, JSON and picture beside the outputs."""
    stem = order.folder / f"{order.model_name}.report"
    contents = {
        ".md": cards.as_markdown(card, f"{stem.name}.svg"),
        ".json": cards.as_json(card),
        ".svg": as_svg(card),
    }
    written = []
    for suffix, content in contents.items():
        target = stem.with_name(stem.name + suffix)
        with replacing(target) as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(target)
    return written


def _scores(order: Order, reference: Subject, subject: Subject, text: Path, n_ctx: int, tell: Teller) -> Scores | None:
    said = False

    def note(done: int, total: int, left_s: float) -> None:
        nonlocal said
        if not said:
            tell.line(f"measuring {subject.type_name}: {total} windows of text, about {duration(left_s)}")
            said = True
        tell.progress(f"measuring {subject.type_name}", done, total, left_s=left_s)

    return compare(
        reference.path,
        subject.path,
        text,
        n_ctx=n_ctx,
        most_windows=order.windows,
        threads=order.threads,
        progress=note,
    )


def _line(
    order: Order, contexts: Sequence[int], subject: Subject, twin: HeaderInfo | None, scores: Scores | None
) -> Line:
    if subject.path.is_file():
        info = header.read(subject.path)
        n_bytes = info.file_bytes
        n_weights = sum(math.prod(tensor.shape) for tensor in info.tensors)
        predicted: Header | None = info
    else:
        n_bytes = sum(file.stat().st_size for file in shard_files(subject.path))
        n_weights = sum(math.prod(tensor.shape) for tensor in twin.tensors) if twin else _weights_of(subject.path)
        predicted = memory.of_folder(subject.path)
    memories = tuple(
        memory.predicted_bytes(predicted, context=n, device=order.device) if predicted else None for n in contexts
    )
    bits = 8 * n_bytes / max(1, n_weights)
    return Line(subject.path.name, subject.type_name, n_bytes, bits, memories, scores, subject.remarks)


def _weights_of(folder: Path) -> int:
    """Numbers in a plain folder; of a quantised one only the original would know."""
    total = 0
    for file in shard_files(folder):
        with Shard(file) as shard:
            total += sum(math.prod(stored.shape) for stored in shard.tensors.values())
    if total == 0:
        raise QuantizeError(f"{folder.name} holds no weights")
    return total
