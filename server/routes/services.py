"""What every route needs, handed down by `create_app`: the settings, the models and the pool.

Owns the questions routes ask about a model before any work is done for it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import ApiError, model_not_found
from server.memory.placement import longest_context
from server.schemas.fields import ignored_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from backends.messages import Ready
    from server.history import History
    from server.metrics import Metrics
    from server.pool.events import Events
    from server.pool.pool import Pool
    from server.settings.catalog import Catalog, CatalogEntry
    from server.settings.config import Settings

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
            raise model_not_found(name)
        return entry

    def ready(self, entry: CatalogEntry) -> Ready | None:
        """The model's run-time figures, as far as they have ever been known."""
        return self.pool.info(entry.name).ready

    def context_limit(self, entry: CatalogEntry) -> int | None:
        """Tokens a request may use at most: effective where known, else configured, else what `auto` begins with."""
        info = self.pool.info(entry.name)
        if info.ready is not None:
            return info.ready.context
        configured = entry.config.context
        if configured == "auto" and info.header is None:
            return None
        return longest_context(info.header, None if configured == "auto" else configured)

    def trained_context(self, entry: CatalogEntry) -> int | None:
        """The context the model was made for."""
        info = self.pool.info(entry.name)
        if info.ready is not None:
            return info.ready.n_ctx_train
        return (info.header.n_ctx_train or None) if info.header is not None else None

    def refuse_too_long(self, entry: CatalogEntry, n_bytes: int, *, param: str) -> None:
        """Refuse a prompt whose bytes alone prove that it cannot fit, before any load. Raises ApiError 400."""
        info, configured = self.pool.info(entry.name), entry.config.context
        if info.header is None or not info.header.longest_token_bytes:
            return
        # The next load may give more than the last one did.
        possible = longest_context(info.header, None if configured == "auto" else configured)
        context = max(possible, info.ready.context if info.ready is not None else 0)
        at_least = n_bytes // max(info.header.longest_token_bytes, _SHORTEST_BOUND_BYTES)
        if at_least > context:
            self.metrics.model(entry.name).rejections["too_long"].inc()
            noun = "messages" if param == "messages" else "prompt"
            raise ApiError(
                400,
                f"This model's maximum context length is {context} tokens. However, your {noun} resulted in at least "
                f"{at_least} tokens. Please reduce the length of the {noun}.",
                param=param,
                code="context_length_exceeded",
            )


def services(request: Request) -> Services:
    """The application's services."""
    found: Services = request.app.state.services
    return found


def new_id(prefix: str) -> str:
    """An id nobody guesses."""
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
