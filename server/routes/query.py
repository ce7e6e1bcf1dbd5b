"""What a GET may say behind its question mark: known names and whole numbers, or a 400 that names what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request


def known_parameters(request: Request, *names: str) -> None:
    """Refuse any other. Raises ApiError."""
    if unknown := [key[:80] for key in request.query_params if key not in names]:
        raise ApiError(400, f"Unknown query parameter: '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")


def whole_number(request: Request, name: str, *, least: int, most: int) -> int | None:
    """A number in its bounds; None where it is not given. Raises ApiError."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and least <= int(text) <= most):
        message = f"Invalid '{name}': a number from {least} to {most} is expected."
        raise ApiError(400, message, param=name, code="invalid_value")
    return int(text)
