"""Which formats there are: by a chat template's source, and by name."""

from __future__ import annotations

from typing import Final

from backends.formats import deepseek, gemma, generic, harmony, hermes, llama, mistral, phi, qwen_xml
from backends.formats.base import Format

FORMATS: Final = (
    harmony.FORMAT,
    gemma.FORMAT,
    gemma.FUNCTION_GEMMA,
    deepseek.FENCED,
    deepseek.FORMAT,
    mistral.HEADED,
    mistral.FORMAT,
    phi.FORMAT,
    qwen_xml.FORMAT,
    hermes.FORMAT,
    llama.FORMAT,
    generic.FORMAT,
)
"""The first that fits is it, so those with rarer words stand before those with common ones."""


def recognise(template: str) -> Format:
    """The format a chat template speaks."""
    return next(format_ for format_ in FORMATS if format_.fits(template))


def named(name: str | None) -> Format:
    """The format of that name; the generic one for a name of another version."""
    return next((format_ for format_ in FORMATS if format_.name == name), generic.FORMAT)
