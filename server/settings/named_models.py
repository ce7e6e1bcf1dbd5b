"""Names by which sections of the configuration mean models: what names none is an error, or a remark where it may come.

A model of a folder or of the hub may have gone and may come back: it stops no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from server.settings.config import TUNED
from server.settings.references import parse_hub_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.settings.config import Settings

_PATTERN: Final = frozenset("*?[")


class CatalogError(Exception):
    """A configuration whose models contradict it; the text is a sentence for the operator."""


class _Unknown(NamedTuple):
    """A name that is no model."""

    name: str
    said: str
    later: str
    """What becomes of it once it is one."""
    hint: str


def may_come(name: str, settings: Settings) -> bool:
    """Whether a model of that name may be there later: it is no misspelled one of those that are listed."""
    from_elsewhere = bool(settings.server.models_dirs) or parse_hub_reference(name) is not None
    return from_elsewhere or name.startswith(TUNED)


def remarks_on(settings: Settings, is_known: Callable[[str], bool]) -> list[str]:
    """What of `scheduler.preload` and of keys names no model now."""
    return [f"{one.said} now; {one.later}" for one in _unknown(settings, is_known, "")]


def refuse_misspelled(settings: Settings, is_known: Callable[[str], bool], *, listed: str) -> None:
    """Raises CatalogError where such a name can never be one. `listed` is what hints tell of the names there are."""
    for one in _unknown(settings, is_known, listed):
        if not may_come(one.name, settings):
            raise CatalogError(f"{one.said}. hint: {one.hint}")


def _unknown(settings: Settings, is_known: Callable[[str], bool], listed: str) -> Iterator[_Unknown]:
    """For keys a pattern or a tuned model is none: they are made for what comes later."""
    for name in settings.scheduler.preload:
        if not is_known(name):
            said = f"scheduler.preload names '{name}', which is no model"
            yield _Unknown(name, said, "it is loaded once it is found or fetched", f"the models are {listed}")
    for key, limits in settings.keys.items():
        for name in limits.models:
            if _PATTERN.isdisjoint(name) and not name.startswith(TUNED) and not is_known(name):
                said = f"keys.{key}.models names '{name}', which is no model"
                hint = f"there are {listed}; a pattern such as '{name}*' is also for models that come later"
                yield _Unknown(name, said, "the key may use it once it is found or fetched", hint)
