"""GPT-2's printable spelling of bytes, which a byte-level BPE vocabulary in a GGUF file is written in."""

from __future__ import annotations


def byte_spelling() -> list[str]:
    """The character that stands for each byte value: itself where printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


def spell(piece: bytes, spelling: list[str]) -> str:
    """The vocabulary entry that stands for `piece`."""
    return "".join(spelling[value] for value in piece)
