"""Writes the pages that are made of the code: `python docs/generate.py`; with `--check` it only says which are old.

configuration.md from the settings' schema, api.md from the surfaces, metrics.md from their table, map.md from the first
line of every file.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.metric_table import FAMILIES
from server.routes.table import SURFACES
from server.schemas.surface import Use
from server.settings.config import Settings

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ROOMS = ("server", "backends", "quantize", "demo", "bench", "deploy")
MADE = "This page is made of the code by `make docs`."
USES = {
    Use.HONOURED: "honoured",
    Use.HARMLESS: "accepted, changes no answer",
    Use.NEUTRAL_ONLY: "refused by name",
}
SECTIONS = ("server", "keys", "memory", "scheduler", "defaults", "models", "training", "metrics", "logging")


def configuration() -> str:
    """Every key with its type, default and meaning."""
    schema = Settings.model_json_schema()
    lines = [
        "# Configuration",
        "",
        f"{MADE} `onecard config init` writes a file with every key,",
        "`onecard config check` checks it, `onecard config show` prints what is in effect.",
        "Flags override the environment (`ONECARD_SECTION__KEY`), which overrides the file.",
        "Sizes are bytes, or `12GiB`, `600MiB`, `12GB`. Times (`_s`) are seconds, or `30s`, `5m`, `1h30m` in quotes.",
        "An unknown key is an error.",
    ]
    for section in SECTIONS:
        below = schema["properties"][section]
        table = below.get("additionalProperties", below)
        rows = schema["$defs"][table["$ref"].rpartition("/")[2]]["properties"]
        heading = f"[{section}.NAME]" if section in ("keys", "models") else f"[{section}]"
        lines += ["", f"## `{heading}`", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_key(name, row) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _key(name: str, row: Mapping[str, Any]) -> str:
    meaning = " ".join(row.get("description", "").split()).replace("|", "\\|")
    default = "required" if "default" not in row else f"`{_value(row['default'])}`"
    return f"| `{name}` | {_type(row)} | {default} | {meaning} |"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _type(row: Mapping[str, Any]) -> str:
    if "enum" in row:
        return " ".join(f"`{choice}`" for choice in row["enum"])
    if "const" in row:
        return f"`{row['const']}`"
    if "anyOf" in row:
        return " or ".join(dict.fromkeys(_type(one) for one in row["anyOf"]))
    if row.get("examples"):
        return f"a size such as `{row['examples'][0]}`"
    if row.get("type") == "array":
        return "list"
    bounds = [f"{row[key]:g}" if key in row else "" for key in ("minimum", "maximum")]
    return str(row.get("type", "table")) + (f" {bounds[0]}..{bounds[1]}" if any(bounds) else "")


def api() -> str:
    """Every field of every request, by what is done with it."""
    lines = [
        "# Requests, field by field",
        "",
        f"{MADE} `GET /openapi.json` describes types, bounds and answers.",
        "",
        "Every field that OpenAI or Anthropic has is here, and so are the extensions.",
        "*Refused by name* means a 400 where the field asks for something; `null` asks for nothing and passes.",
        "Unknown fields are named in the header `x-onecard-ignored`, and so is what is known and has no effect.",
        "Fields that change no answer have the types and bounds of the published APIs all the same:",
        '`"store": "yes"` is a 400.',
        "",
        "| surface | what is done | fields |",
        "|---|---|---|",
        *_fields(),
    ]
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[str]:
    for surface in SURFACES:
        if surface.path.endswith(("_tokens", "tokenize")):
            continue
        for use, word in USES.items():
            names = sorted(name for name, its in surface.fields.items() if its is use)
            if names:
                yield f"| `{surface.path}` | {word} | {' '.join(f'`{name}`' for name in names)} |"


def metrics() -> str:
    """Every metric with its labels and meaning."""
    lines = [
        "# Metrics",
        "",
        f"{MADE} `GET /metrics` serves them in Prometheus' text format.",
        "Those marked vLLM have the same name there, with the prefix `vllm:`.",
        "`[metrics] vllm_names = true` serves both.",
        "",
        "| metric | type | labels | meaning | vLLM |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        labels = " ".join(f"`{label}`" for label in family.labels)
        kind = family.type.removeprefix("token ")
        lines.append(
            f"| `{family.full_name}` | {kind} | {labels} | {family.text} | {'yes' if family.in_vllm else ''} |"
        )
    return "\n".join(lines) + "\n"


def rooms() -> str:
    """What each file owns, in its own words."""
    lines = ["# Map", "", f"{MADE} Each line is the first sentence of the file."]
    for top in ROOMS:
        for folder in sorted({file.parent for file in _sources(top)}):
            lines += ["", f"## `{folder.relative_to(ROOT)}/`", "", "| file | |", "|---|---|"]
            lines += [f"| `{file.stem}` | {_first_sentence(file)} |" for file in _sources(top) if file.parent == folder]
    return "\n".join(lines) + "\n"


def _sources(top: str) -> list[Path]:
    return sorted(file for file in (ROOT / top).rglob("*.py") if file.name != "__init__.py")


def _first_sentence(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


PAGES = {"configuration.md": configuration, "api.md": api, "metrics.md": metrics, "map.md": rooms}


def main() -> int:
    """Exit code 1 where `--check` finds an old page."""
    old = [name for name, make in PAGES.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != make()]
    if "--check" in sys.argv[1:]:
        print(f"old: {', '.join(old)}. hint: make docs" if old else "docs: up to date")
        return 1 if old else 0
    for name in old:
        (DOCS / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
