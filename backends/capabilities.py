"""What a model can do, told alike by its files before a load and by its engine afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.formats.thinking import options_of
from backends.messages import SENSES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from backends.backend import Gives
    from backends.messages import MediaKind

FIM_MARKS: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)
"""Tokens before prefix, suffix and middle of a fill-in-the-middle prompt, family by family."""
_LLAMA_CPP: Final = (
    *FIM_MARKS,
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
)
"""Those that llama.cpp knows by their texts; it takes each of the three from any family."""


def of_text(template: str | None, *, infills: bool, media: Iterable[MediaKind] = ()) -> list[str]:
    """Of a model that generates text. A template without tools of its own is given them in the system message."""
    found = ["completion"]
    if template:
        found += ["chat", "tools"]
    if infills:
        found.append("infill")
    if template and options_of(template):
        found.append("thinking")
    return found + [SENSES[kind] for kind in media]


def of_kind(gives: Gives, template: str | None, *, infills: bool, media: Iterable[MediaKind] = ()) -> list[str]:
    """Of any model."""
    if gives == "text":
        return of_text(template, infills=infills, media=media)
    return ["rerank" if gives == "scores" else "embedding"]


def has_infill_tokens(tokens: Container[bytes]) -> bool:
    """Whether llama.cpp would find the three tokens in a vocabulary that does not name them by number."""
    return all(any(text.encode() in tokens for text in texts) for texts in zip(*_LLAMA_CPP, strict=True))


def counted(n_parameters: int) -> str:
    """A number of parameters as people write it: `135M`, `8.2B`."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_parameters >= scale:
            return f"{n_parameters / scale:.3g}{unit}"
    return str(n_parameters)
