"""What a route asks for in its signature, solved by FastAPI: the services, a key's rights, the query and the body.

Owns how strictly requests are read. All are coroutines: FastAPI would run anything else in a thread.
"""

# No `from __future__ import annotations`: FastAPI reads the signatures of these objects where they have no globals.

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema
from starlette.requests import Request

from server.asker import ASKER
from server.errors import ApiError, unsupported_parameter
from server.routes.services import Services
from server.schemas.body import off_loop, parse_object, read_as
from server.schemas.problems import check, problem
from server.schemas.surface import Surface
from server.settings.listener import is_loopback

T = TypeVar("T")
Q = TypeVar("Q", bound=BaseModel)
_MAX_NAMED_CHARS = 80
_MAX_DIGITS = 12


async def services(request: Request) -> Services:
    """The application's services."""
    found: Services = request.app.state.services
    return found


App = Annotated[Services, Depends(services)]


class JsonBody(Generic[T]):
    """The body of a surface. `read` gives the checked request and raises ApiError."""

    def __init__(self, surface: Surface, read: Callable[[Request], Awaitable[T]]) -> None:
        self.surface = surface
        self._read = read

    async def __call__(self, request: Request) -> T:
        """Called by FastAPI. Raises ApiError."""
        return await self._read(request)


def parsed(surface: Surface, parse: Callable[[dict[str, Any]], T]) -> JsonBody[T]:
    """A body that says everything itself: what `parse` makes of the one JSON object in it."""
    return JsonBody(surface, lambda request: read_as(request, parse))


class _Nothing(BaseModel):
    """A body in which no field says anything."""

    model_config = ConfigDict(extra="forbid")


async def no_fields(request: Request) -> None:
    """Of routes whose address says everything: no body, or an empty object. Raises ApiError 400."""
    if body := await request.body():
        await off_loop(len(body), lambda: check(_Nothing, parse_object(body)))


class StrictQuery(Generic[Q]):
    """What stands behind the question mark, as a model; where `applies` says no it is not looked at, and None."""

    def __init__(self, model: type[Q], applies: Callable[[Request], bool] = lambda _request: True) -> None:
        self.model = model
        self._applies = applies

    async def __call__(self, request: Request) -> Q | None:
        """Called by FastAPI. Raises ApiError."""
        return read_query(request, self.model) if self._applies(request) else None


def read_query(request: Request, model: type[Q]) -> Q:
    """The parameters, each given once unless it is a list; unknown ones too where the model forbids others.

    Raises ApiError 400.
    """
    asked = request.query_params
    named = {info.alias or name: info for name, info in model.model_fields.items()}
    lists = {name for name, info in named.items() if info.annotation == list[str]}
    if model.model_config.get("extra") == "forbid" and (unknown := [key for key in asked if key not in named]):
        name = unknown[0][:_MAX_NAMED_CHARS]
        raise ApiError(400, f"Unknown query parameter: '{name}'.", param=name, code="unknown_parameter")
    for name in (name for name in named if name in asked and name not in lists):
        if (n := len(asked.getlist(name))) > 1:
            message = f"The query parameter '{name}' is given {n} times; give it once."
            raise ApiError(400, message, param=name, code="duplicate_parameter")
    return check(
        model, {name: asked.getlist(name) if name in lists else asked[name] for name in named if name in asked}
    )


@dataclass(frozen=True)
class Whole:
    """A number in plain digits, in its bounds."""

    least: int
    most: int

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._number)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def _number(self, text: str) -> int:
        fits = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
        if not (fits and self.least <= int(text) <= self.most):
            sentence = "Invalid '{param}': a number from {least} to {most} is expected."
            raise problem("invalid_value", sentence, least=self.least, most=self.most)
        return int(text)


@dataclass(frozen=True)
class Word:
    """One of some words; `told` is what an error says of them."""

    words: tuple[str, ...]
    told: str

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._word)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.words)}

    def _word(self, text: str) -> str:
        if text not in self.words:
            raise problem("invalid_value", "Invalid '{param}': {told} is expected.", told=self.told)
        return text


class ModelQuery(BaseModel):
    """The model, of a client that can name it in an address only."""

    model: str | None = None


def require_admin(request: Request, what: str, *, param: str | None = None) -> None:
    """Refuse what only an admin key may do, where there are keys. `what` begins the sentence. Raises ApiError 403.

    Whose key it is was found out at the gate; without any key everything is allowed.
    """
    if request.state.admin:
        return
    raise ApiError(
        403,
        f"{what} needs an admin key, and the key of this request is none. hint: the operator lists it under "
        "admin_keys in [server], or writes it as 'admin KEY' in the key file",
        param=param,
        code="admin_key_required",
        headers={"x-should-retry": "false"},
    )


def require_operator(request: Request, app: Services, what: str, plural: str) -> None:
    """Who may change what the server holds: with keys an admin key, without any only this machine. Raises ApiError 403.

    `what` begins the sentence of the one, `plural` that of the other.
    """
    require_admin(request, what)
    require_near_or_key(request, app, plural)


def require_near_or_key(request: Request, app: Services, plural: str) -> None:
    """Without keys only this machine may. `plural` begins the sentence. Raises ApiError 403."""
    peer = request.client.host if request.client is not None else "localhost"
    if not app.settings.every_key and not is_loopback(peer.removeprefix("::ffff:")):
        raise ApiError(
            403,
            f"{plural} from another machine needs a key, and this server has none.",
            code="admin_needs_key",
            headers={"x-should-retry": "false"},
        )


def check_wishes(request: Request, *, priority: int | None, keep_alive_s: float | None) -> None:
    """Refuse wishes about how a model and its queue are shared. Raises ApiError 400 for a batch's line, and 403."""
    if ASKER.get().background:
        for name, wish in (("priority", priority or None), ("keep_alive", keep_alive_s)):
            if wish is not None:
                why = "says nothing in a batch: its lines run behind everything else, on models that leave as ever."
                raise unsupported_parameter(name, why)
    if (priority or 0) > 0:
        require_admin(request, "A 'priority' above 0", param="priority")
    if keep_alive_s is not None:
        require_admin(request, "Setting 'keep_alive'", param="keep_alive")
