"""Names by which sections of the configuration mean models: what names none is an error, or a remark where it may come.

A model of a folder or of the hub may have gone and may come back: it stops no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.settings.config import TUNED
from server.settings.references import parse_hub_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.settings.config import Settings

_PATTERN: Final = frozenset("*?[")


class CatalogError(Exception):
    """A configuration whose models contradict it; the text is a sentence for the operator."""


def may_come(name: str, settings: Settings) -> bool:
    """Whether a model of that name may be there later: it is no misspelled one of those that are listed."""
    return bool(settings.server.models_dirs) or parse_hub_reference(name) is not None


def remarks_on(settings: Settings, is_known: Callable[[str], bool], *, listed: str) -> list[str]:
    """What of `scheduler.preload` and of keys names no model now. Raises CatalogError where it can never be one.

    `listed` is what hints tell of the names there are.
    """
    return [*_of_preload(settings, is_known, listed), *_of_keys(settings, is_known, listed)]


def _of_preload(settings: Settings, is_known: Callable[[str], bool], listed: str) -> Iterator[str]:
    for name in settings.scheduler.preload:
        if is_known(name):
            continue
        said = f"scheduler.preload names '{name}', which is no model"
        if not may_come(name, settings):
            raise CatalogError(f"{said}. hint: the models are {listed}")
        yield f"{said} now; it is loaded once it is found or fetched"


def _of_keys(settings: Settings, is_known: Callable[[str], bool], listed: str) -> Iterator[str]:
    """A pattern or a tuned model is no remark: they are made for what comes later."""
    for key, limits in settings.keys.items():
        for name in limits.models:
            if not _PATTERN.isdisjoint(name) or name.startswith(TUNED) or is_known(name):
                continue
            said = f"keys.{key}.models names '{name}', which is no model"
            if not may_come(name, settings):
                raise CatalogError(
                    f"{said}. hint: there are {listed}; a pattern such as '{name}*' is also for models that come later"
                )
            yield f"{said} now; the key may use it once it is found or fetched"
