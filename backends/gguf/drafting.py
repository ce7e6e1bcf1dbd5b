"""Gives a loaded GGUF model the one that drafts for it: a second file with its own context, in the same process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engine import LoadError
from backends.generation.draft_model import DraftModel, common_tokens
from backends.gguf.context import Context
from backends.gguf.model import Model
from backends.gguf.mtp import Mtp
from backends.gguf.threads import sensible_threads
from backends.plan import BATCH_TOKENS

if TYPE_CHECKING:
    from backends.generation.draft_model import TokenDrafter
    from backends.messages import GeneratorPlan, LoadModel


@dataclass(frozen=True)
class Drafting:
    """What came of it."""

    model: TokenDrafter | None = None
    told: str = ""
    """What `speculation` says of it."""
    n_bytes: int = 0
    """Of weights, cache and buffers, where it computes."""


def open_for(spec: LoadModel, model: Model, context: Context, plan: GeneratorPlan) -> Drafting:
    """Load the draft model, or make a context over the model's own predicting layer, where one is wanted.

    Raises LoadError.
    """
    if model.n_predicting and not model.carries_state:
        return _of_its_own(model, context)
    if spec.draft is None or spec.speculation == "off" or model.carries_state:
        return Drafting()
    log = model.log
    of_model = list(log.lines)
    log.lines.clear()
    on_card = plan.gpu_layers != 0 and plan.device == "cuda"
    try:
        draft = Model(Path(spec.draft.path), gpu_layers=-1 if on_card else 0, log=log)
        try:
            made = _with_context(spec, model, draft, plan)
        except BaseException:
            draft.close()
            raise
    except LoadError as error:
        message = f"its draft model {spec.draft.name}: {error.message}"
        raise LoadError(message, out_of_memory=error.out_of_memory) from None
    computes = sum(log.buffers("compute").values()) + sum(log.buffers("output").values())
    n_bytes = draft.n_bytes + log.cache_bytes() + computes
    log.lines[:] = of_model
    return Drafting(made, f"model:{spec.draft.name}", n_bytes)


def _of_its_own(model: Model, context: Context) -> Drafting:
    if model.n_predicting > 1:
        raise LoadError(
            f"the file has {model.n_predicting} layers that predict further tokens, and one is supported. "
            "hint: speculation = 'auto'"
        )
    log = model.log
    of_model = list(log.lines)
    log.lines.clear()
    made = Mtp(model, context, context.params)
    n_bytes = log.cache_bytes() + sum(log.buffers("compute").values()) + sum(log.buffers("output").values())
    log.lines[:] = of_model
    return Drafting(made, "mtp", n_bytes)


def _with_context(spec: LoadModel, model: Model, draft: Model, plan: GeneratorPlan) -> DraftModel:
    if not draft.has_tokenizer or not draft.generates:
        raise LoadError("it generates no text. hint: name another one in speculation")
    if draft.carries_state:
        raise LoadError(
            "it carries a running state, and tokens that did not come true cannot be taken back there. "
            "hint: name one with attention in speculation"
        )
    n_common = common_tokens(model, draft)
    of_draft = plan.of_draft(draft.n_ctx_train)
    context = Context(
        draft,
        context=of_draft.context,
        parallel=of_draft.parallel,
        kv_type=of_draft.kv_type,
        max_batch=BATCH_TOKENS,
        n_threads=spec.threads or sensible_threads(draft.n_bytes),
        log=draft.log,
        layout=of_draft.kv_layout,
        kv_tokens=of_draft.kv_tokens,
        copies_cells=of_draft.device == "cuda",
    )
    context.warm_up(BATCH_TOKENS if plan.device == "cuda" else 1)

    def close() -> None:
        context.close()
        draft.close()

    return DraftModel(
        context,
        parallel=plan.parallel,
        n_tokens=of_draft.context,
        n_vocab=n_common,
        step_us=1e6 * context.warm_up(1),
        close=close,
    )
