"""What a running server takes over of another configuration, and what waits for a restart. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.registry import BACKENDS
from server.settings.config import ModelConfig, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

AT_ONCE: Final = frozenset(
    {"name", "aliases", "json_whitespace", "sampling", "system", "pinned", "priority", "keep_alive_s", "preload"}
)
"""Keys of a model that a running server takes over as they are; any other means that it is loaded anew."""


def differing_keys(before: ModelConfig, after: ModelConfig) -> list[str]:
    """What of a model is configured otherwise; a key of a backend's own also where it was written down or taken out."""
    of_backends = {key for backend in BACKENDS.values() for key in backend.options().model_fields}
    written = of_backends & (before.model_fields_set ^ after.model_fields_set)
    shrinkable = before.open ^ after.open
    return [
        key
        for key in ModelConfig.model_fields
        if getattr(before, key) != getattr(after, key) or key in written or key in shrinkable
    ]


LIVE: Final[Mapping[str, frozenset[str]]] = {
    "server": frozenset(
        {
            "allowed_hosts", "api_keys", "admin_keys", "api_key_file", "allow_public", "models_dirs", "cors",
            "max_queue", "request_timeout_s", "sse_keepalive_s", "max_body_bytes",
        }
    ),
    "memory": frozenset({"on_pressure"}),
    "scheduler": frozenset({"keep_alive_s", "max_wait_s", "min_residency_s", "preload"}),
    "defaults": frozenset(Settings.model_fields["defaults"].annotation.model_fields),  # type: ignore[union-attr]
    "training": frozenset({"policy", "idle_after_s", "leave_within_s"}),
    "metrics": frozenset(),
    "logging": frozenset({"level", "prompts"}),
    "traces": frozenset(),
}  # fmt: skip
"""Keys that a running server takes over; any other needs a restart. Models are taken over whole."""


def taken_over(running: Settings, wanted: Settings) -> tuple[Settings, list[str], list[str]]:
    """The wanted settings as far as a running server can have them; keys that change now, and those that do not."""
    applied, kept, sections = [], [], {}
    for name, live in LIVE.items():
        before, after = getattr(running, name), getattr(wanted, name)
        differ = [key for key in type(before).model_fields if getattr(before, key) != getattr(after, key)]
        applied += [f"{name}.{key}" for key in differ if key in live]
        held = {key: getattr(before, key) for key in differ if key not in live}
        kept += [f"{name}.{key}" for key in held]
        sections[name] = after.model_copy(update=held)
    names = sorted(running.keys.keys() | wanted.keys.keys())
    applied += [f"keys.{name}" for name in names if running.keys.get(name) != wanted.keys.get(name)]
    return wanted.model_copy(update=sections), applied, kept
