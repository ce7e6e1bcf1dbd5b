"""What every route needs, handed down by `create_app`: the settings, the models and the pool.

Owns the questions routes ask about a model before any work is done for it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.kinds import main_kind, refusal
from backends.registry import KINDS, backend_of, kind_giving
from server.errors import ApiError, model_not_found
from server.routes.query import once
from server.schemas.fields import ignored_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from backends.kinds import AnyKind
    from backends.messages import Ready
    from server.history import History
    from server.metrics import Metrics
    from server.pool.events import Events
    from server.pool.pool import Pool
    from server.pool.status import ModelInfo
    from server.settings.catalog import Catalog, CatalogEntry
    from server.settings.config import Settings

_LOOK_WAITS_S = 1.0
_SHORTEST_BOUND_BYTES = 16
"""No token is taken to be shorter than this when a prompt's length is judged unread."""


@dataclass(frozen=True)
class Services:
    """One per application."""

    settings: Settings
    catalog: Catalog
    pool: Pool
    metrics: Metrics
    events: Events
    history: History
    started_unix: int

    def entry(self, name: str | None) -> CatalogEntry:
        """The model a client names; where it names none, the only one there is. Raises ApiError 404 or 400."""
        if name is None:
            if len(self.catalog.entries) == 1:
                return self.catalog.entries[0]
            raise ApiError(
                400, "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            )
        entry = self.catalog.resolve(name)
        if entry is None:
            raise model_not_found(name, [entry.name for entry in self.catalog.entries])
        return entry

    def ready(self, entry: CatalogEntry) -> Ready | None:
        """The model's run-time figures, as far as they have ever been known."""
        return self.pool.info(entry.name).ready

    async def look_once(self, *entries: CatalogEntry) -> None:
        """Read the files of models of which nothing is known yet, each on a thread of its own, and wait a moment."""
        unknown = [entry.name for entry in entries if _is_unknown(self.pool.info(entry.name))]
        if unknown:
            await asyncio.wait([asyncio.create_task(self.pool.look(name)) for name in unknown], timeout=_LOOK_WAITS_S)

    def capabilities(self, entry: CatalogEntry) -> list[str]:
        """What the model can do; before its first load what its files tell."""
        if (ready := self.ready(entry)) is not None:
            return ready.capabilities
        header = self.pool.info(entry.name).header
        return [] if header is None else header.capabilities

    def refuse_other_kind(self, entry: CatalogEntry, wanted: AnyKind) -> None:
        """Refuse what is known to be another kind of model's work, before any load. Raises ApiError 400."""
        info = self.pool.info(entry.name)
        if info.ready is not None:
            kind = main_kind(KINDS.values(), info.ready.capabilities)
            able = kind is None or wanted.capability in info.ready.capabilities
        else:
            kind = None if info.header is None else kind_giving(info.header.gives)
            able = kind is None or kind is wanted
        if kind is not None and not able:
            told = f"The model '{entry.name}' {refusal(kind, wanted)}"
            raise ApiError(400, told, param="model", code="invalid_value")

    def tokens_cover_text(self, entry: CatalogEntry) -> bool:
        """Whether every character of a text is in some token: word pieces drop spaces and unknown words."""
        header = self.pool.info(entry.name).header
        return header is not None and header.tokens_cover_text

    def context_limit(self, entry: CatalogEntry) -> int | None:
        """Tokens a request may use at most: effective where known, else configured, else what `auto` begins with."""
        info = self.pool.info(entry.name)
        if info.ready is not None:
            return info.ready.context
        configured = None if entry.config.context == "auto" else entry.config.context
        if info.header is None:
            return configured
        return backend_of(info.header).longest_context(info.header, configured)

    def trained_context(self, entry: CatalogEntry) -> int | None:
        """The context the model was made for."""
        info = self.pool.info(entry.name)
        if info.ready is not None:
            return info.ready.n_ctx_train
        return (info.header.n_ctx_train or None) if info.header is not None else None

    def refuse_too_long(self, entry: CatalogEntry, n_bytes: int, *, param: str, noun: str | None = None) -> None:
        """Refuse a prompt whose bytes alone prove that it cannot fit, before any load. Raises ApiError 400."""
        info, configured = self.pool.info(entry.name), None if entry.config.context == "auto" else entry.config.context
        if info.header is None or not info.header.longest_token_bytes:
            return
        # The next load may give more than the last one did.
        possible = backend_of(info.header).longest_context(info.header, configured)
        context = max(possible, info.ready.context if info.ready is not None else 0)
        at_least = n_bytes // max(info.header.longest_token_bytes, _SHORTEST_BOUND_BYTES)
        if at_least > context:
            self.metrics.model(entry.name).rejections["too_long"].inc()
            noun = noun or ("messages" if param == "messages" else "prompt")
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens. However, your {noun} resulted in at least "
                f"{at_least} tokens. Please reduce the length of the {noun}.",
                param=param,
                code="context_length_exceeded",
            )


def _is_unknown(info: ModelInfo) -> bool:
    return info.header is None and info.ready is None and info.unusable is None


def services(request: Request) -> Services:
    """The application's services."""
    found: Services = request.app.state.services
    return found


def named_model(request: Request, app: Services, name: str | None, *, alias: str) -> CatalogEntry:
    """The model of a client that may not be able to name one: its body's, `?model=`'s, the only one, or the one called
    `alias`. Raises ApiError."""
    name = name or once(request, "model") or None
    if name is None and len(app.catalog.entries) > 1:
        name = alias if app.catalog.resolve(alias) is not None else None
        if name is None:
            raise ApiError(
                400,
                "Missing required parameter: 'model'. Send it in the body or as '?model=NAME', or give one model the "
                f"alias '{alias}'.",
                param="model",
                code="missing_required_parameter",
            )
    return app.entry(name)


def new_id(prefix: str) -> str:
    """An id that can not be guessed."""
    return f"{prefix}{secrets.token_hex(12)}"


def served_headers(entry: CatalogEntry, ignored: Iterable[str] = ()) -> dict[str, str]:
    """The headers that are known before a job is submitted."""
    headers = {"x-onecard-model": header_text(entry.name)}
    if (names := ignored_header(ignored)) is not None:
        headers["x-onecard-ignored"] = names
    return headers


def header_text(text: str) -> str:
    """A configured name for a header: printable ASCII."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
