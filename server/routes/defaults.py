"""A model's sampling defaults in a request that leaves fields out; a request's own field always wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from server.schemas.fields import TokenChoice
from server.settings.sampling import SamplingSource, sampling_of

if TYPE_CHECKING:
    from server.routes.services import Services
    from server.settings.catalog import CatalogEntry

C = TypeVar("C", bound=TokenChoice)
HEADER: Final = "x-onecard-sampling"
_SOURCES: Final[tuple[SamplingSource, ...]] = ("config", "model")


async def with_defaults(app: Services, entry: CatalogEntry, asked: C) -> tuple[C, dict[str, str]]:
    """The request with the model's defaults in the fields it leaves out, and the header that tells of them."""
    info = app.pool.info(entry.name)
    if info.header is None and info.unusable is None:
        await app.pool.look(entry.name)
        info = app.pool.info(entry.name)
    found = sampling_of(entry.config, info.header)
    used = {name: given for name, given in found.items() if getattr(asked, name, None) is None}
    if not used:
        return asked, {}
    told = {by: ",".join(f"{name}={value:g}" for name, (value, b) in used.items() if b == by) for by in _SOURCES}
    parts = [f"{values} ({by})" for by, values in told.items() if values]
    return asked.model_copy(update={name: value for name, (value, _) in used.items()}), {HEADER: "; ".join(parts)}
