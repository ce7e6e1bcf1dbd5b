"""What every route needs, handed down by `create_app`, and what is known of the model a request names.

Owns the questions routes ask about a model before any work is done for it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from backends.kinds import main_kind, refusal
from backends.messages import ChatPrompt, Failed
from backends.plan import AUTO_CONTEXT
from backends.registry import KINDS, backend_of, kind_giving
from server.asker import ASKER
from server.errors import ApiError, from_failed, missing_parameter, model_not_found
from server.schemas.fields import ignored_header
from server.settings.config import adapter_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.backend import Header
    from backends.kinds import AnyKind
    from backends.messages import Ready
    from server.accounts.book import UsageBook
    from server.batches.runner import BatchRunner
    from server.batches.store import BatchStore
    from server.door.spool import Spool
    from server.files.store import FileStore
    from server.history import History
    from server.metrics import Metrics
    from server.pool.events import Events
    from server.pool.pool import Pool
    from server.pool.status import ModelInfo
    from server.pulling import Puller
    from server.reload import Reloader
    from server.settings.catalog import Catalog, CatalogEntry
    from server.settings.config import Settings
    from server.stored_images import StoredImages
    from server.tuning.results import Results
    from server.tuning.runner import TuningRunner
    from server.tuning.store import TuningStore

_SHORTEST_BOUND_BYTES = 16
"""No token is taken to be shorter than this when a prompt's length is judged unread."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one model at one moment: a request asks once, and again where its model may have loaded."""

    entry: CatalogEntry
    info: ModelInfo
    adapter: str = ""
    """The LoRA adapter that was asked for; empty: the model alone."""

    @property
    def name(self) -> str:
        """As it is configured, also where an alias was asked for; with an adapter `MODEL:ADAPTER`."""
        return adapter_name(self.entry.name, self.adapter) if self.adapter else self.entry.name

    @property
    def aliases(self) -> list[str]:
        """Its other names."""
        named = [adapter_name(alias, self.adapter) if self.adapter else alias for alias in self.entry.aliases]
        return [name for name in dict.fromkeys(named) if name != self.name]

    @property
    def unusable(self) -> str | None:
        """Why it cannot be served; None where nothing is known to speak against it."""
        if self.info.unusable is not None or not self.adapter:
            return self.info.unusable
        if self.ready is not None:
            return self.ready.facts.adapters.get(self.adapter, "the model was loaded without it") or None
        known = () if self.header is None else self.header.adapters
        return next((adapter.problem for adapter in known if adapter.name == self.adapter), None)

    def refuse_bad_adapter(self) -> None:
        """Refuse what asks for an adapter that is known not to be served, before any load. Raises ApiError."""
        if self.adapter and self.info.unusable is None and (why := self.unusable) is not None:
            told = f"adapter '{self.adapter}' is not served: {why}"
            raise from_failed(Failed(id="", code="load_failed", message=told, param="model"))

    @property
    def ready(self) -> Ready | None:
        """Its run-time figures, as far as they have ever been known."""
        return self.info.ready

    @property
    def header(self) -> Header | None:
        """What its files tell."""
        return self.info.header

    @property
    def is_unknown(self) -> bool:
        """Its files were not looked at yet."""
        return self.header is None and self.ready is None and self.info.unusable is None

    @property
    def capabilities(self) -> list[str]:
        """What it can do; before its first load what its files tell."""
        known = self.ready or self.header
        return [] if known is None else known.capabilities

    @property
    def tokens_cover_text(self) -> bool:
        """Whether every character of a text is in some token: word pieces drop spaces and unknown words."""
        return self.header is not None and self.header.tokens_cover_text

    @property
    def context_limit(self) -> int | None:
        """Tokens a request may use at most: what an open context may grow to, a fixed one as it is in effect."""
        if self.ready is not None and (self.ready.text is None or not self._grows):
            return None if self.ready.text is None else self.ready.text.context
        return self._longest_context

    @property
    def loaded_context(self) -> int | None:
        """Tokens of the context that the model has now, or had last; before the first load what it begins with."""
        if self.ready is not None:
            return None if self.ready.text is None else self.ready.text.context
        longest = self._longest_context
        return min(longest, AUTO_CONTEXT) if longest is not None and self._grows else longest

    @property
    def _grows(self) -> bool:
        return self.entry.config.context == "auto" and (self.header is None or self.header.gives == "text")

    @property
    def trained_context(self) -> int | None:
        """The context the model was made for."""
        if self.ready is not None:
            return None if self.ready.text is None else self.ready.text.n_ctx_train
        return (self.header.n_ctx_train or None) if self.header is not None else None

    @property
    def possible_context(self) -> int:
        """What this load or the next may give: it may be more than the last one gave."""
        text = None if self.ready is None else self.ready.text
        return max(self._longest_context or 0, 0 if text is None else text.context)

    @property
    def _longest_context(self) -> int | None:
        configured = None if self.entry.config.context == "auto" else self.entry.config.context
        if self.header is None:
            return configured if self.ready is None or self.ready.text is None else self.ready.text.context
        return self.info.context_max or backend_of(self.header).longest_context(self.header, configured)

    def with_system(self, prompt: ChatPrompt) -> ChatPrompt:
        """The conversation behind the configured system message, where it has none of its own."""
        system = self.entry.config.system
        if not system or any(message["role"] == "system" for message in prompt.messages):
            return prompt
        return msgspec.structs.replace(prompt, messages=[{"role": "system", "content": system}, *prompt.messages])

    def refuse_other_kind(self, wanted: AnyKind) -> None:
        """Refuse what is known to be another kind of model's work, before any load. Raises ApiError 400."""
        if self.ready is not None:
            kind = main_kind(KINDS.values(), self.ready.capabilities)
            able = kind is None or wanted.capability in self.ready.capabilities
        else:
            kind = None if self.header is None else kind_giving(self.header.gives)
            able = kind is None or kind is wanted
        if kind is not None and not able:
            told = f"The model '{self.name}' {refusal(kind, wanted)}"
            raise ApiError(400, told, param="model", code="invalid_value")


@dataclass(frozen=True)
class Services:
    """One per application."""

    settings: Settings
    catalog: Catalog
    pool: Pool
    metrics: Metrics
    events: Events
    history: History
    images: StoredImages
    spool: Spool
    reloader: Reloader
    puller: Puller
    usage: UsageBook
    files: FileStore
    batches: BatchStore
    batch_runner: BatchRunner
    tuning: TuningStore
    tuning_runner: TuningRunner
    tuning_results: Results
    started_unix: int

    def model(self, name: str | None, *, alias: str | None = None) -> ModelFacts:
        """The model a client names; where it names none, the only one there is, or the one called `alias`.

        Raises ApiError 404 or 400.
        """
        if name is None:
            every = self.all_models()
            bases = [model for model in every if not model.adapter] or every
            if len(bases) == 1:
                return bases[0]
            found = None if alias is None else self.catalog.resolve(alias)
            if found is None or not ASKER.get().may_use(*found.called()):
                raise _nameless(alias)
            return self.facts(found)
        (entry, adapter), asker = self.catalog.find(name), ASKER.get()
        if entry is not None and not asker.may_use(*entry.called(adapter)):
            entry = None
            if asker.account is not None:
                asker.account.refused_model()
        if entry is None:
            raise model_not_found(name, [model.name for model in self.all_models()])
        return self.facts(entry, adapter=adapter)

    @property
    def entries(self) -> list[CatalogEntry]:
        """The models that the key of this request may use."""
        asker = ASKER.get()
        return [entry for entry in self.catalog.entries if asker.may_use(*entry.called())]

    def facts(self, entry: CatalogEntry, *, adapter: str = "") -> ModelFacts:
        """What is known of a model now, or of one of its adapters."""
        return ModelFacts(entry, self.pool.info(entry.name), adapter)

    def all_models(self) -> list[ModelFacts]:
        """Every model that the key of this request may use, each with its adapters behind it."""
        asker = ASKER.get()
        every = [(entry, a) for entry in self.catalog.entries for a in ("", *entry.config.adapters)]
        return [self.facts(entry, adapter=a) for entry, a in every if asker.may_use(*entry.called(a))]

    async def looked_at(self, model: ModelFacts) -> ModelFacts:
        """What is known of a model once its files were read; waits for that where they were not yet."""
        if model.header is not None or model.info.unusable is not None:
            return model
        await self.pool.look(model.entry.name)
        return self.facts(model.entry, adapter=model.adapter)

    async def listed(self, *models: ModelFacts) -> list[ModelFacts]:
        """The models; files of those of which nothing is known are read first, each on a thread of its own.

        No client is told that a model can do nothing because its disk is slow. One that takes longer than a look may
        is told as `unusable`.
        """
        unknown = dict.fromkeys(model.entry.name for model in models if model.is_unknown)
        if unknown:
            await asyncio.gather(*(self.pool.look(name) for name in unknown))
        return [self.facts(model.entry, adapter=model.adapter) for model in models]

    def refuse_too_long(self, model: ModelFacts, n_bytes: int, *, param: str, noun: str | None = None) -> None:
        """Refuse a prompt whose bytes alone prove that it cannot fit, before any load. Raises ApiError 400."""
        if model.header is None or not model.header.longest_token_bytes:
            return
        at_least = n_bytes // max(model.header.longest_token_bytes, _SHORTEST_BOUND_BYTES)
        if model.ready is not None and model.ready.text is not None and at_least <= model.ready.text.context:
            return
        context = model.possible_context
        if at_least > context:
            self.metrics.model(model.entry.name).rejections["too_long"].inc()
            noun = noun or ("messages" if param == "messages" else "prompt")
            why = self.pool.why_not_grow(model.entry.name, at_least)
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens. However, your {noun} resulted in at least "
                f"{at_least} tokens. Please reduce the length of the {noun}.{f' {why}' if why else ''}",
                param=param,
                code="context_length_exceeded",
            )


def _nameless(alias: str | None) -> ApiError:
    """No model is named, and there are several."""
    if alias is None:
        return missing_parameter("model")
    return ApiError(
        400,
        "Missing required parameter: 'model'. Send it in the body or as '?model=NAME', or give one model the alias "
        f"'{alias}'.",
        param="model",
        code="missing_required_parameter",
    )


def new_id(prefix: str) -> str:
    """An id that can not be guessed."""
    return f"{prefix}{secrets.token_hex(12)}"


def served_headers(model: ModelFacts, ignored: Iterable[str] = ()) -> dict[str, str]:
    """The headers that are known before a job is submitted."""
    headers = {"x-onecard-model": header_text(model.name)}
    if (names := ignored_header(ignored)) is not None:
        headers["x-onecard-ignored"] = names
    return headers


def header_text(text: str) -> str:
    """A configured name for a header: printable ASCII."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
