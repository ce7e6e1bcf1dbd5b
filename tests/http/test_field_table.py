"""The README's table of request fields says what the schemas do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from server.schemas.fields import Use
from server.surfaces import SURFACES

README = Path(__file__).resolve().parents[2] / "README.md"
FIELDS: Mapping[str, Mapping[str, Use]] = {
    surface.path: surface.fields for surface in SURFACES if not surface.path.endswith(("_tokens", "tokenize"))
}
ROW = {
    Use.HONOURED: "honoured",
    Use.HARMLESS: "accepted, changes no answer",
    Use.NEUTRAL_ONLY: "refused by name",
}


def table() -> str:
    """A row per surface and use, fields in alphabetical order."""
    rows = [
        f"| `{path}` | {word} | {' '.join(f'`{name}`' for name in sorted(fields) if fields[name] is use)} |"
        for path, fields in FIELDS.items()
        for use, word in ROW.items()
        if use in fields.values()
    ]
    return "\n".join(["| surface | what is done | fields |", "|---|---|---|", *rows])


def test_the_readmes_table_of_fields_is_what_the_schemas_do():
    assert table() in README.read_text(), f"the README should say:\n{table()}"
