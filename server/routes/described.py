"""A route that describes itself in `/openapi.json`: its body and its query by what reads them, its answers by type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.routing import Match, Route, request_response

from server.routes.dependencies import JsonBody, StrictQuery
from server.routes.lean import lean_handler

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

    from server.schemas.surface import Surface


class Described(APIRoute):
    """As FastAPI's, and it answers HEAD where it answers GET."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        read_by = [dependency.call for dependency in self.dependant.dependencies]
        self.surface: Surface | None = next((by.surface for by in read_by if isinstance(by, JsonBody)), None)
        """What its body is."""
        self.query = next((by.model for by in read_by if isinstance(by, StrictQuery)), None)
        """What may stand behind the question mark."""
        methods: set[str] = self.methods or set()
        self.methods = {*methods, "HEAD"} if "GET" in methods else methods
        if (handler := lean_handler(self.dependant)) is not None:
            self.app = request_response(handler)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's: FastAPI's also looks for routers that include this one, and here all routes lie in a row."""
        return Route.matches(self, scope)
