"""A short-lived process that tells what models would take, from loads that allocate nothing.

Reads one JSON line per question from its socket and answers each with one JSON line, so that a file that brings
llama.cpp down loses its own answer and those behind it, and nothing else. It ends with its parent.

question: {"path": ..., "gpu_layers": ..., "host_tensors": [...], "plans": [a `GeneratorPlan` or `EncoderPlan` each]}
answer:   {"weights": ..., "plans": [{"cache": ..., "compute": {...}, "output": {...}} or null]} or {"error": ...},
          which is empty where memory was short and nothing is known of the file
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends.asked import answer_lines
from backends.engine import LoadError
from backends.gguf.context_params import dry_context
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.gguf.passes import pass_tokens
from backends.gguf.pooled import dry_pooled, gives_vectors
from backends.messages import EncoderPlan, GeneratorPlan
from backends.plan import BATCH_TOKENS

if TYPE_CHECKING:
    from backends.messages import TextPlan

_NICENESS = 10


def answer(question: dict[str, Any], log: LibraryLog) -> dict[str, Any]:
    """The sizes of every plan; None for one that llama.cpp refuses."""
    layers = question["gpu_layers"]
    log.lines.clear()
    log.problems.clear()
    try:
        model = Model(
            Path(question["path"]), gpu_layers=layers, log=log, dry=True, host_tensors=question.get("host_tensors", ())
        )
    except LoadError as error:
        return {"error": "" if error.out_of_memory else error.message}
    plans: list[TextPlan] = msgspec.convert(question["plans"], list[GeneratorPlan | EncoderPlan])
    sizes = [_sizes(model, plan, layers) for plan in plans]
    weights = model.n_bytes
    model.close()
    return {"weights": weights, "plans": sizes}


def _sizes(model: Model, plan: TextPlan, layers: int) -> dict[str, Any] | None:
    try:
        if gives_vectors(model):
            return asdict(dry_pooled(model, context=plan.context, pass_tokens=pass_tokens(layers)))
        if not isinstance(plan, GeneratorPlan):
            return None
        sizes = dry_context(
            model,
            context=plan.context,
            parallel=plan.parallel,
            kv_type=plan.kv_type,
            kv_tokens=plan.kv_tokens,
            kv_offload=plan.kv_offload,
            layout=plan.kv_layout,
            max_batch=BATCH_TOKENS,
        )
        return asdict(sizes)
    except LoadError:
        return None


def main() -> None:
    """Answer on the socket `--fd` until it is closed."""
    with suppress(OSError):
        os.nice(_NICENESS)
    log = LibraryLog()
    log.install()
    answer_lines("onecard-dryrun", lambda question: json.dumps(answer(json.loads(question), log)))


if __name__ == "__main__":
    main()
