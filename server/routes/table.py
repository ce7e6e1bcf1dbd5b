"""Every router there is, in the order in which paths are tried; those that backends bring (`Backend.routes`) last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.registry import BACKENDS, named
from server.routes import (
    anthropic,
    capacity,
    chat,
    completions,
    description,
    embeddings,
    events,
    health,
    infill,
    models,
    props,
    rerank,
    responses,
    tokens,
)

if TYPE_CHECKING:
    from fastapi import APIRouter

ROUTERS: Final[tuple[APIRouter, ...]] = (
    # What is asked most comes first: each path that is tried before costs two microseconds.
    health.router,
    chat.router,
    anthropic.router,
    responses.router,
    embeddings.router,
    completions.router,
    models.router,
    rerank.router,
    infill.router,
    tokens.router,
    events.router,
    capacity.router,
    props.router,
    description.router,
    *(named(f"{module}:router") for backend in BACKENDS.values() for module in backend.routes),
)
METRICS: Final[APIRouter] = health.metrics_router
"""Only where the configuration wants the page."""
