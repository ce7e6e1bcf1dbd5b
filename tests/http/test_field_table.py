"""The README's table of request fields says what the schemas do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from server.schemas import anthropic, chat, completions, responses
from server.schemas.fields import Use

README = Path(__file__).resolve().parents[2] / "README.md"
SURFACES: Mapping[str, Mapping[str, Use]] = {
    "/v1/chat/completions": chat.FIELDS,
    "/v1/completions": completions.FIELDS,
    "/v1/responses": responses.FIELDS,
    "/v1/messages": anthropic.FIELDS,
}
ROW = {
    Use.HONOURED: "honoured",
    Use.HARMLESS: "accepted, changes nothing",
    Use.NEUTRAL_ONLY: "refused by name",
}


def table() -> str:
    """A row per surface and use, fields in alphabetical order."""
    rows = [
        f"| `{surface}` | {word} | {' '.join(f'`{name}`' for name in sorted(fields) if fields[name] is use)} |"
        for surface, fields in SURFACES.items()
        for use, word in ROW.items()
    ]
    return "\n".join(["| surface | what is done | fields |", "|---|---|---|", *rows])


def test_the_readmes_table_of_fields_is_what_the_schemas_do():
    assert table() in README.read_text(), f"the README should say:\n{table()}"
