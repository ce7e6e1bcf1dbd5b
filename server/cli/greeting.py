"""What `onecard serve` prints when it is ready: the address, the models, and requests to copy."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from typing import TYPE_CHECKING

from server.settings.sizes import format_size

if TYPE_CHECKING:
    from server.settings.catalog import CatalogEntry

_QUESTION = "What is the capital of France?"


def greeting(
    url: str, entries: list[CatalogEntry], *, states: dict[str, str], keyed: bool, problems: dict[str, str]
) -> str:
    """The whole text; its first line ends with the URL. `problems` are the models that cannot be served."""
    shown = next((entry.name for entry in entries if entry.name not in problems), entries[0].name)
    messages = [{"role": "user", "content": _QUESTION}]
    body = json.dumps({"model": shown, "stream": True, "messages": messages}, ensure_ascii=False)
    headers = "-H 'Content-Type: application/json'"
    if keyed:
        headers = '-H "Authorization: Bearer $ONECARD_API_KEY" ' + headers
    key = 'os.environ["ONECARD_API_KEY"]' if keyed else '"none"'
    model = json.dumps(shown, ensure_ascii=False)
    imports = ("import os; " if keyed else "") + "from openai import OpenAI"
    lines = [
        f"onecard {version('onecard')} serves {url}/v1",
        *_table(entries, states),
        *(f"  warning: {name}: {' '.join(why.split())}" for name, why in problems.items()),
        *(["  warning: no model can be served"] if len(problems) == len(entries) else []),
        "",
        f"  curl -N {url}/v1/chat/completions {headers} -d {shlex.quote(body)}",
        "",
        f"  {imports}; client = OpenAI(base_url={json.dumps(url + '/v1')}, api_key={key})",
        f"  print(client.chat.completions.create(model={model}, messages={json.dumps(messages)})"
        ".choices[0].message.content)",
        "",
    ]
    return "\n".join(lines)


def _table(entries: list[CatalogEntry], states: dict[str, str]) -> list[str]:
    width = max(len(entry.name) for entry in entries)
    return [
        f"  {entry.name:<{width}}  {states[entry.name]:<9} {format_size(entry.size_bytes):>8}  {entry.backend}"
        + (f"  also {', '.join(entry.aliases)}" if entry.aliases else "")
        for entry in entries
    ]
