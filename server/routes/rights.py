"""What only an admin key may do where there are keys: move models, go before others, keep a model longer.

Whose key it is was found out at the gate; without any key everything is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request


def require_admin(request: Request, what: str, *, param: str | None = None) -> None:
    """Refuse what the request's key may not do. `what` begins the sentence. Raises ApiError 403."""
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


def check_wishes(request: Request, *, priority: int | None, keep_alive_s: float | None) -> None:
    """Refuse wishes about how a model and its queue are shared. Raises ApiError 403."""
    if (priority or 0) > 0:
        require_admin(request, "A 'priority' above 0", param="priority")
    if keep_alive_s is not None:
        require_admin(request, "Setting 'keep_alive'", param="keep_alive")
