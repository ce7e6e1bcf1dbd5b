"""Every router there is, in the order in which paths are tried; those that backends bring (`Backend.routes`) last.

And every surface that takes a body of JSON, which are those of the routers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.registry import BACKENDS, named
from server.routes import (
    anthropic,
    batches,
    capacity,
    chat,
    completions,
    config,
    description,
    embeddings,
    events,
    files,
    fine_tuning,
    health,
    infill,
    leases,
    models,
    ollama,
    ollama_models,
    ollama_pull,
    ollama_vectors,
    page,
    props,
    rerank,
    responses,
    tokens,
    usage,
)
from server.routes.described import Described

if TYPE_CHECKING:
    from fastapi import APIRouter

    from server.schemas.surface import Surface

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
    config.router,
    usage.router,
    leases.router,
    files.router,
    batches.router,
    fine_tuning.router,
    ollama.router,
    ollama_models.router,
    ollama_pull.router,
    ollama_vectors.router,
    page.router,
    description.router,
    *(named(f"{module}:router") for backend in BACKENDS.values() for module in backend.routes),
)
SURFACES: Final[tuple[Surface, ...]] = tuple(
    {
        route.surface.path: route.surface
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, Described) and route.surface is not None
    }.values()
)
METRICS: Final[APIRouter] = health.metrics_router
"""Only where the configuration wants the page."""
