"""Which model drafts for which: what `speculation = "model:NAME"` comes to among the models that there are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.registry import BACKENDS
from server.settings.named_models import CatalogError, may_come

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings


def drafts_among(
    entries: Mapping[str, CatalogEntry], by_name: Mapping[str, CatalogEntry], settings: Settings
) -> tuple[dict[str, CatalogEntry], dict[str, str]]:
    """By model, the one that drafts for it; and why none does where the configuration names one. Raises CatalogError.

    `by_name` has the models by their aliases, too. No entry is changed.
    """
    drafts: dict[str, CatalogEntry] = {}
    undrafted: dict[str, str] = {}
    for entry in entries.values():
        name = entry.config.draft_name
        if name is None:
            continue
        said = f"model '{entry.name}': speculation = 'model:{name}'"
        draft = by_name.get(name)
        if draft is not None:
            if _may_draft(draft, entry, said):
                drafts[entry.name] = draft
        elif may_come(name, settings):
            undrafted[entry.name] = f"{said} names no model now; it drafts once it is found or fetched"
        else:
            raise CatalogError(f"{said} names no model. hint: the models are {', '.join(entries)}")
    return drafts, undrafted


def _may_draft(draft: CatalogEntry, entry: CatalogEntry, said: str) -> bool:
    """What `[defaults]` say is for the models it can be for. Raises CatalogError where the model's own key says it."""
    if draft is not entry and (entry.backend == draft.backend or entry.missing or draft.missing):
        return True
    if not entry.config.is_own("speculation"):
        return False
    if draft is entry:
        raise CatalogError(f"{said} is the model itself. hint: name a smaller one of its family")
    raise CatalogError(
        f"{said} is {BACKENDS[draft.backend].files}, and {entry.path} is {BACKENDS[entry.backend].files}: one "
        "process computes with one library. hint: name a model of the same kind"
    )
