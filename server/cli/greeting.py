"""What `onecard serve` prints when it is ready: the address, the models, and requests to copy."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from server.memory.gpu import engine_has_cuda, torch_has_cuda
from server.settings.builtin import BUILT_IN, QUESTION
from server.settings.sizes import format_share, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.cli.checkup import Checkup
    from server.pool.status import MemoryStatus
    from server.settings.catalog import CatalogEntry

_QUERY = "What is the capital of France?"
_PROMPT = "a red circle on a blue background"
_DOCUMENTS = ["Paris is the capital of France.", "Bread is baked in an oven."]


def greeting(
    url: str,
    entries: list[CatalogEntry],
    *,
    states: dict[str, str],
    keyed: bool,
    checkup: Checkup,
    memory: MemoryStatus,
    notes: Sequence[str] = (),
) -> str:
    """The whole text; its first line ends with the URL. `notes` are about the listener."""
    problems, gives = checkup.unusable, checkup.gives
    usable = [entry.name for entry in entries if entry.name not in problems]
    lines = [
        f"onecard {version('onecard')} serves {url}/v1",
        *_table(entries, {name: told(state, name in problems) for name, state in states.items()}),
        *(f"  warning: {name}: {' '.join(why.split())}" for name, why in problems.items()),
        *(f"  note: {name}: {remark}" for name, remarks in checkup.remarks.items() for remark in remarks),
        *(["  warning: no model can be served"] if len(problems) == len(entries) else []),
        *(f"  {note}" for note in notes),
        *(f"  warning: {text}" for text in memory.warnings),
        "",
        *(_to_copy(url, _shown(usable, gives), entries, gives, keyed=keyed) if usable else []),
        f"  {device_words(memory)}",
        f"  {engine_words(engine_has_cuda(), torch_has_cuda())}",
        "",
    ]
    return "\n".join(lines)


def device_words(memory: MemoryStatus) -> str:
    """`cpu, 12.3 GiB for models` or `NVIDIA RTX 4070 Ti, 10.9 of 12 GiB for models; 20 GiB of host memory`."""
    if memory.device == "cpu":
        return f"cpu, {format_size(memory.budget_bytes)} for models"
    share = format_share(memory.budget_bytes, memory.device_total_bytes)
    card = f"{memory.device_name or memory.device}, {share} for models"
    return card if memory.host is None else f"{card}; {format_size(memory.host.budget_bytes)} of host memory"


def engine_words(llama: bool | None, torch: bool | None) -> str:
    """`llama.cpp is built for CUDA, PyTorch for the CPU`; None: it is not installed."""
    words = {True: "is built for CUDA", False: "is built for the CPU", None: "is not installed"}
    second = words[torch] if llama is None or torch is None else words[torch].removeprefix("is built ")
    return f"llama.cpp {words[llama]}, PyTorch {second}"


def greeting_line(
    url: str, entries: list[CatalogEntry], *, states: dict[str, str], checkup: Checkup, memory: MemoryStatus
) -> str:
    """The same as one line of JSON, for who reads the log as JSON."""
    models = [
        {"name": e.name, "state": states[e.name], "backend": e.backend, "unusable": checkup.unusable.get(e.name)}
        for e in entries
    ]
    told = {"event": "serving", "url": url, "version": version("onecard"), "models": models}
    engines = engine_words(engine_has_cuda(), torch_has_cuda())
    where = {"device": device_words(memory), "engines": engines, "warnings": memory.warnings}
    return json.dumps({**told, **where}, ensure_ascii=False)


def _to_copy(url: str, shown: str, entries: list[CatalogEntry], gives: dict[str, str], *, keyed: bool) -> list[str]:
    """A request for curl, and for OpenAI's client where it has a call for it."""
    built_in = next((BUILT_IN.get(entry.config.path) for entry in entries if entry.name == shown), None)
    question = QUESTION if built_in is None else built_in.question
    path, body, call = _request(shown, gives.get(shown, "text"), question)
    headers = "-H 'Content-Type: application/json'"
    if keyed:
        headers = '-H "Authorization: Bearer $ONECARD_API_KEY" ' + headers
    key = 'os.environ["ONECARD_API_KEY"]' if keyed else '"none"'
    imports = ("import os; " if keyed else "") + "from openai import OpenAI"
    curl = f"curl -N {url}{path} {headers} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    client = f"{imports}; client = OpenAI(base_url={json.dumps(url + '/v1')}, api_key={key})"
    return [f"  {curl}", "", *([f"  {client}", f"  {call}", ""] if call else [])]


def _shown(names: list[str], gives: dict[str, str]) -> str:
    """The model of the request to copy: the first that generates text, else one that gives vectors, else the first."""
    for kind in ("text", "vectors"):
        for name in names:
            if gives.get(name, "text") == kind:
                return name
    return names[0]


def _request(name: str, kind: str, question: str) -> tuple[str, dict[str, Any], str]:
    """Path and body of a request, and the call of OpenAI's client that is the same; empty where it has none."""
    model = json.dumps(name, ensure_ascii=False)
    if kind == "vectors":
        call = f"print(client.embeddings.create(model={model}, input={json.dumps(_QUERY)}).data[0].embedding[:4])"
        return "/v1/embeddings", {"model": name, "input": _QUERY}, call
    if kind == "scores":
        return "/v1/rerank", {"model": name, "query": _QUERY, "documents": _DOCUMENTS}, ""
    if kind == "images":
        call = f"print(client.images.generate(model={model}, prompt={json.dumps(_PROMPT)}).data[0].b64_json[:40])"
        return "/v1/images/generations", {"model": name, "prompt": _PROMPT}, call
    messages = [{"role": "user", "content": question}]
    call = f"print(client.chat.completions.create(model={model}, messages={json.dumps(messages)})"
    body = {"model": name, "stream": True, "messages": messages}
    return "/v1/chat/completions", body, call + ".choices[0].message.content)"


def told(state: str, unusable: bool) -> str:
    """`unloaded (unusable)`: the state of a model that no request could load."""
    return f"{state} (unusable)" if unusable else state


def _table(entries: list[CatalogEntry], states: dict[str, str]) -> list[str]:
    width, wide = max(len(entry.name) for entry in entries), max(9, *map(len, states.values()))
    return [
        f"  {entry.name:<{width}}  {states[entry.name]:<{wide}} {format_size(entry.size_bytes):>8}  {entry.backend}"
        + (f"  also {', '.join(entry.aliases)}" if entry.aliases else "")
        + (f"  adapters {', '.join(entry.config.adapters)}" if entry.config.adapters else "")
        for entry in entries
    ]
