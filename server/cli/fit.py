"""`onecard fit`: whether and how a model fits into the memory, in bytes, without a load.

A running server that has the model is asked; else it is computed here, without a server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import msgspec

from backends.backend import HeaderError
from backends.kv_types import kv_types_of
from backends.registry import BACKENDS
from server.cli.client import server_url
from server.cli.configuration import loaded_or_exit, with_folders
from server.cli.console import CliError, ExitCode, say, stdout, write, write_json
from server.cli.finding import ask_first, is_known_here, nearest, owners
from server.cli.flags import name_for
from server.memory.budget import likely_plans, wish
from server.memory.capacity import Capacity, PlanStatus, WishChange, capacity_of
from server.memory.elsewhere import memory_to_plan_with
from server.memory.estimator import Estimator
from server.memory.files import FileFacts, look
from server.memory.idle_keys import idle_keys
from server.memory.learned import Learned
from server.memory.ledger import LedgerError, Tenant
from server.memory.opening import DeviceError
from server.memory.placement import memory_words
from server.memory.speeds import SpeedEstimator, SpeedStatus
from server.scheduling.eviction import Candidate
from server.settings.builtin import BUILT_IN
from server.settings.catalog import Catalog
from server.settings.config_source import ConfigError
from server.settings.named_models import CatalogError
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from backends.messages import LoadPlan
    from server.memory.memory import Memory
    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings

_NEAR: Final = 2
_CANDIDATE: Final = "the model"


def show_fit(
    model: str,
    *,
    others: list[str],
    asked: dict[str, Any],
    flags: dict[str, Any],
    url: str | None = None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Print the plan; exit code 3 when none fits. Beside other models, or for another memory, it is computed here."""
    if (kv_type := asked.get("kv_type")) is not None:
        try:
            asked = {**asked, "kv_type": kv_types_of(kv_type)}
        except ValueError as problem:
            raise CliError(f"--kv-type: {problem}", ExitCode.USAGE) from None
    answer = None if others or flags else _of_server(model, asked, url, config)
    beside: list[str] = []
    if answer is None:
        answer, beside = _computed([model, *others], asked, flags, config)
    if as_json:
        write_json(msgspec.to_builtins(answer))
    else:
        _show(answer, beside)
    if not answer.fits:
        raise CliError(answer.reason or f"{answer.model} does not fit", ExitCode.DOES_NOT_FIT)


def _of_server(model: str, asked: dict[str, Any], url: str | None, config: Path | None) -> Capacity | None:
    """What a running server says of its own model; None where it does not serve it. Raises CliError."""
    settings = with_folders(loaded_or_exit(config).settings).settings
    try:
        first = ask_first(model, url=url, settings=settings)
    except CliError as problem:
        if problem.code is not ExitCode.UNREACHABLE:
            raise
        return None
    if first.name is None:
        if first.names and not is_known_here(model, settings):
            first.refuse(model)
        if first.names:
            say(f"{first.why_not}: this is computed here, for a server without other models")
        return None
    say(f"as the server at {first.client.base} has it now")
    query = {"model": first.name, **{key: value for key, value in asked.items() if value is not None}}
    return msgspec.convert(first.client.get(f"/v1/capacity?{urlencode(query)}"), Capacity)


def _computed(
    names: list[str], asked: dict[str, Any], flags: dict[str, Any], config: Path | None
) -> tuple[Capacity, list[str]]:
    """The first one's plan beside the others, and what these are called. Raises CliError."""
    settings, entries = entries_of(names, flags, config)
    backend = BACKENDS[entries[0].backend]
    if asked.get("kv_type") is not None and (why := backend.refuses.get("kv_type")):
        raise CliError(f"--kv-type: this is {backend.files}, {why}", ExitCode.USAGE)
    try:
        answer = asyncio.run(_answer(settings, entries, WishChange(**asked)))
    except (DeviceError, HeaderError) as problem:
        raise CliError(str(problem)) from None
    return answer, [entry.name for entry in entries[1:]]


def capacity_for(path: Path, config: Path | None, table: dict[str, Any]) -> tuple[Capacity, bool]:
    """The plan of files with these keys of a model's table, from their headers alone, and whether it leaves no layer
    off the device. Raises CliError.
    """
    flags = {"models": {_CANDIDATE: {**table, "path": str(path)}}}
    settings, entries = entries_of([_CANDIDATE], flags, config)
    try:
        answer = asyncio.run(_answer(settings, entries, WishChange(), dry=False))
    except (DeviceError, HeaderError) as problem:
        raise CliError(str(problem)) from None
    n_layers = facts_of(entries[0]).header.n_layers
    whole = (answer.plan.gpu_layers or 0) > n_layers and not answer.plan.further
    return answer, answer.device is None or whole


def entries_of(names: list[str], flags: dict[str, Any], config: Path | None) -> tuple[Settings, list[CatalogEntry]]:
    """The models by name, alias or path; those that are not configured are added with the defaults."""
    try:
        settings = with_folders(loaded_or_exit(config, flags=flags).settings).settings
        known = {alias for name, m in settings.models.items() for alias in m.called(name)}
        added = {name_for(name): {"path": name} for name in names if name not in known}
        if added:
            settings = with_folders(loaded_or_exit(config, flags={**flags, "models": added}).settings).settings
        catalog = Catalog(settings)
    except (CatalogError, ConfigError) as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    found = [catalog.resolve(name) or catalog.resolve(name_for(name)) for name in names]
    if any(entry is None for entry in found):
        raise CliError(f"there is no model {names[found.index(None)]}", ExitCode.USAGE)
    for given, entry in zip(names, found, strict=True):
        if entry is not None and entry.missing is not None:
            raise CliError(_missing(given, entry, settings, configured=given in known), ExitCode.USAGE)
    return settings, [entry for entry in found if entry is not None]


def _missing(given: str, entry: CatalogEntry, settings: Settings, *, configured: bool) -> str:
    """Why there is nothing to look at; a plain name may be one that a running server was told."""
    if configured or given in BUILT_IN or "/" in given or given.endswith(".gguf") or Path(given).expanduser().exists():
        return f"model '{entry.name}': {entry.missing}"
    near = nearest(given, {*owners(settings), *BUILT_IN} - {entry.name, given})
    hint = f"{near} A" if near else "a"
    url = f"{server_url(os.environ.get('ONECARD_URL'), settings)}/v1/capacity?model={quote(given)}"
    return (
        f"no model '{given}' is configured here, and no file is called so. "
        f"hint: {hint} running server knows its own: {url}"
    )


async def _answer(settings: Settings, entries: list[CatalogEntry], change: WishChange, *, dry: bool = True) -> Capacity:
    """The first entry's plan beside the others, which are taken to be resident."""
    memory, elsewhere = await memory_to_plan_with(settings.memory)
    if elsewhere:  # what this machine's engine would allocate says nothing of a card
        say(f"no card is here: this is the plan for one with {format_size(memory.account.budget_bytes)} for models")
        dry = False
    learned = Learned()
    estimator, speeds = Estimator(learned), SpeedEstimator(learned)
    entries = [change.of(entries[0]), *entries[1:]]
    facts = [facts_of(entry) for entry in entries]
    wishes = [wish(entry.config, memory.device) for entry in entries]
    wishes[0] = change.over(wishes[0])
    likely = [(seen, likely_plans(seen, w)) for seen, w in zip(facts, wishes, strict=True)]
    # A child that fails leaves the computed sizes, and the answer says which they are.
    logging.getLogger("onecard.dry").addHandler(logging.NullHandler())
    if await _measured(speeds, entries[0].backend):
        await estimator.save()
    if dry:
        await estimator.ask_dry([(seen, _near(estimator, seen, plans, memory)) for seen, plans in likely])
    for entry, seen in zip(entries, facts, strict=True):
        if (why := estimator.refused.get(seen.key)) is not None:
            raise CliError(f"{entry.path}: {why}")
    residents = []
    for entry, (seen, plans) in zip(entries[1:], likely[1:], strict=True):
        footprint = estimator.estimate(seen, plans[0]).footprint
        free = memory.ledger.free
        try:
            memory.ledger.reserve(Tenant(entry.name), footprint)
        except LedgerError:
            needs, left = (memory_words(memory.device, amount) for amount in (footprint.amount, free))
            raise CliError(
                f"--with {entry.name}: it needs {needs} itself, {left} are free", ExitCode.DOES_NOT_FIT
            ) from None
        if not entry.config.pinned:
            residents.append(Candidate(entry.name, footprint.amount, 1.0))
    return capacity_of(
        entries[0].name,
        facts[0].header,
        wishes[0],
        lambda plan: estimator.estimate(facts[0], plan),
        budget=memory.ledger.budget,
        free=memory.ledger.free,
        residents=residents,
        speed=lambda plan: speeds.estimate(facts[0], plan),
        notes=idle_keys(entries[0].config, entries[0].backend, memory.device),
    )


async def _measured(speeds: SpeedEstimator, backend: str) -> bool:
    """Whether the machine's rates are new: they are measured where they are not known."""
    logging.getLogger("onecard.rates").addHandler(logging.NullHandler())
    if not speeds.wants(backend) or speeds.machine(backend) is not None:
        return False
    say("measuring what this machine does for speeds, once")
    return bool(await speeds.measure([backend]))


def facts_of(entry: CatalogEntry) -> FileFacts:
    """What its files say. Raises CliError."""
    try:
        return look(entry)
    except HeaderError as problem:
        raise CliError(f"{entry.path}: {problem}") from None


def _near(estimator: Estimator, seen: FileFacts, plans: list[LoadPlan], memory: Memory) -> list[LoadPlan]:
    """The plans that exact sizes could let in: what takes many times the budget takes the engine long to tell."""
    most_bytes = _NEAR * memory.account.budget_bytes
    return [
        plan for plan in plans if estimator.estimate(seen, plan).footprint.on(plan.device).total_bytes <= most_bytes
    ]


def _show(answer: Capacity, others: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    verdict = "fits" if answer.fits else "does not fit"
    stay = [name for name in others if name not in answer.would_evict]
    beside = f" beside {', '.join(stay)}" if stay else ""
    instead = f" in place of {', '.join(answer.would_evict)}" if answer.fits and answer.would_evict and others else ""
    write(f"{answer.model} {verdict}{beside}{instead}{plan_words(answer.plan, before=': ')}")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, side in (("on the card", answer.device), ("host memory", answer.host)):
        if side is None:
            continue
        if answer.device is not None:
            table.add_row(Text(name, style="bold"), "")
        for part, n_bytes in side.parts.items():
            if n_bytes:
                table.add_row(Text(part), format_size(n_bytes))
        table.add_row("total", f"{format_size(side.total_bytes)} of {format_size(side.budget_bytes)}")
        table.add_row("free", format_size(side.free_bytes))
    stdout().print(table)
    for note in answer.notes:
        write(f"note: {note}")
    write(f"estimate: {_SOURCES[answer.source]}")
    if answer.speed is not None:
        write(f"speed: {speed_words(answer.speed)}, {SPEED_SOURCES[answer.speed.source]}")
    if answer.trained_context is not None and (answer.plan.context or 0) > answer.trained_context:
        write(f"beware: the model was trained for a context of {answer.trained_context} tokens")
    if (answer.context_max or 0) > (answer.plan.context or 0):
        write(f"grows to a context of {answer.context_max} where a request needs it")
    if answer.would_evict:
        write(f"would evict: {', '.join(answer.would_evict)}")
    for other in answer.alternatives:
        speed = f", {speed_words(other.speed)}" if other.speed is not None else ""
        write(f"fits too: {plan_words(other)}: {format_size(other.total_bytes)}{speed}")


_SOURCES = {
    "measured": "measured at an earlier load",
    "dry": "told by the engine without loading",
    "header": "computed from the files",
}


SPEED_SOURCES = {
    "measured": "measured of this plan",
    "learned": "corrected by other loads here",
    "computed": "computed from what this machine was measured to do",
    "rough": "computed roughly: other programs were busy when this machine was measured",
    "assumed": "assuming the card of an RTX 4070 Ti",
}


def speed_words(speed: SpeedStatus) -> str:
    """Tokens per second of one request alone."""
    full = speed.full_decode_tokens_per_s
    end = f" ({full:g} in a full context)" if full != speed.decode_tokens_per_s else ""
    return f"{speed.decode_tokens_per_s:g} tokens/s{end}, prompts {speed.prefill_tokens_per_s:g}"


def plan_words(plan: PlanStatus, *, before: str = "") -> str:
    """What the plan has; nothing where there is nothing to choose."""
    names = ("context", "parallel", "kv_type")
    shown = [f"{name} {value}" for name in names if (value := getattr(plan, name)) is not None]
    pool = [f"kv_tokens {plan.kv_tokens}"] if plan.kv_tokens else []
    layers = [f"{plan.gpu_layers} layers on the card"] if plan.gpu_layers else []
    further = [f"{name} {value}" for name, value in (plan.further or {}).items()]
    words = ", ".join([*shown, *pool, *layers, *further])
    return before + words if words else ""
