"""Makes docs/fields.md of the tables that the server itself uses."""

from __future__ import annotations

import json

from server.schemas.fields import Use
from server.surfaces import SURFACES

HEAD = """# Every field, and what is done with it

A field that is not here is accepted and named in the header `x-onecard-ignored`, and so is what is honoured only in
part (tools of other kinds, `reasoning.summary`, ...). "Without effect" are fields that change nothing of the answer.
"Refused" means a 400 that names the field, unless it asks for nothing: null always does, and what stands in brackets.

Written by `python -m tests.surfaces.fields > docs/fields.md`; a test compares it with the tables the server checks
requests by.
"""


def page() -> str:
    """The whole file."""
    parts = [HEAD]
    for surface in SURFACES:
        if not surface.path.endswith("_tokens"):
            rows = [
                ("honoured", _names(surface.fields, Use.HONOURED)),
                ("without effect", _names(surface.fields, Use.HARMLESS)),
                ("refused", [_refused(name, surface.neutral) for name in _plain(surface.fields, Use.NEUTRAL_ONLY)]),
            ]
            lines = [f"| {what} | {', '.join(names)} |" for what, names in rows if names]
            parts.append("\n".join([f"## `{surface.path}`", "", "| | fields |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def _plain(fields, use: Use) -> list[str]:
    return [name for name, its in fields.items() if its is use]


def _names(fields, use: Use) -> list[str]:
    return [f"`{name}`" for name in _plain(fields, use)]


def _refused(name: str, neutral) -> str:
    values = ", ".join(f"`{json.dumps(value)}`" for value in neutral.get(name, ()))
    return f"`{name}`" + (f" [{values}]" if values else "")


if __name__ == "__main__":
    print(page(), end="")
