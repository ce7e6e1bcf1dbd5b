"""What the tokenizer files of a folder say before a library reads them: chat template, fill-in-the-middle marks.

What cannot be read here is the load's to refuse, with its reason.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from backends.bnb.tokenizer_file import NAME
from backends.capabilities import FIM_MARKS
from backends.files import model_files

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG: Final = "tokenizer_config.json"
_MOST_TEMPLATE_BYTES: Final = model_files.CONFIG_BYTES


def chat_template(folder: Path) -> str | None:
    """The source of the template for conversations with tools, as transformers finds it; None where there is none."""
    named = _named(_object(folder / _CONFIG).get("chat_template"))
    for name, path in (
        ("default", folder / "chat_template.jinja"),
        ("tool_use", folder / "additional_chat_templates" / "tool_use.jinja"),
    ):
        if (source := _text(path)) is not None:
            named[name] = source
    if not named:  # of processors, as models that see had them first
        named = _named(_object(folder / "chat_template.json").get("chat_template"))
    return named.get("tool_use") or named.get("default")


def has_infill_marks(folder: Path) -> bool:
    """Whether tokenizer.json holds the three tokens of one family. Looks for their texts, without building anything."""
    try:
        raw = model_files.read_bytes(folder / NAME, model_files.VOCABULARY_BYTES)
    except model_files.FileError:
        return False
    return any(all(_holds(raw, mark) for mark in marks) for marks in FIM_MARKS)


def _holds(raw: bytes, text: str) -> bool:
    return any(json.dumps(text, ensure_ascii=escaped).encode() in raw for escaped in (False, True))


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else []
    named = {e.get("name"): e.get("template") for e in entries if isinstance(e, dict)}
    return {name: source for name, source in named.items() if isinstance(name, str) and isinstance(source, str)}


def _object(path: Path) -> dict[str, Any]:
    try:
        return model_files.read_object(path)
    except model_files.FileError:
        return {}


def _text(path: Path) -> str | None:
    try:
        return model_files.read_bytes(path, _MOST_TEMPLATE_BYTES).decode("utf-8", "replace")
    except model_files.FileError:
        return None
