"""What a request may say behind its question mark: known names, each once, or a 400 that names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request


def known_parameters(request: Request, *names: str, repeated: tuple[str, ...] = ()) -> None:
    """Refuse any other, and one of `names` that is given twice. Raises ApiError."""
    if unknown := [key[:80] for key in request.query_params if key not in (*names, *repeated)]:
        raise ApiError(400, f"Unknown query parameter: '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")
    for name in names:
        once(request, name)


def once(request: Request, name: str) -> str | None:
    """The text of a parameter; None where it is not given. Raises ApiError where it is given twice."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        message = f"The query parameter '{name}' is given {len(values)} times; give it once."
        raise ApiError(400, message, param=name, code="duplicate_parameter")
    return values[0] if values else None


def flag(request: Request, name: str) -> bool:
    """Whether it is `true`; false where it is not given. Raises ApiError for anything but `true` and `false`."""
    text = once(request, name)
    if text not in (None, "true", "false"):
        message = f"Invalid '{name}': 'true' or 'false' is expected."
        raise ApiError(400, message, param=name, code="invalid_value")
    return text == "true"


def whole_number(request: Request, name: str, *, least: int, most: int) -> int | None:
    """A number in its bounds; None where it is not given. Raises ApiError."""
    text = once(request, name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and least <= int(text) <= most):
        message = f"Invalid '{name}': a number from {least} to {most} is expected."
        raise ApiError(400, message, param=name, code="invalid_value")
    return int(text)
