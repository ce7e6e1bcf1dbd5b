"""What an operator has set up: the configuration, its models, the port, the service. Nothing is loaded or changed."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from backends.backend import HeaderError
from server.cli.checkup import without_engine
from server.cli.client import client_for
from server.cli.console import CliError
from server.cli.doctor.findings import Finding, told
from server.memory.files import look
from server.settings.catalog import Catalog
from server.settings.config import Settings
from server.settings.config_source import ConfigError, default_config_file, load_settings
from server.settings.discovery import discover, with_discovered
from server.settings.listener import foreign_host_without_key, is_loopback, public_without_key
from server.settings.named_models import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANSWERS_WITHIN_S: Final = 1.0


def versions() -> list[Finding]:
    """Ours and Python's."""
    return [Finding("version", "ok", f"onecard {version('onecard')}, Python {sys.version.split()[0]} in {sys.prefix}")]


def configuration(config: Path | None) -> tuple[list[Finding], Settings | None]:
    """Whether it can be read, and the settings where it can."""
    try:
        loaded = load_settings(config)
    except ConfigError as problem:
        return [told("configuration", "problem", line) for line in str(problem).splitlines()], None
    where = str(loaded.file) if loaded.file else f"defaults: there is no {default_config_file()}"
    found = [Finding("configuration", "ok", where)]
    settings = loaded.settings
    if public_without_key(settings):
        text = f"server.host = '{settings.server.host}' is open to the network without a key, so the server won't start"
        found.append(Finding("configuration", "problem", text, "--api-key-file FILE"))
    if (host := foreign_host_without_key(settings)) is not None:
        text = f"server.allowed_hosts names {host} without a key, so the server won't start"
        found.append(Finding("configuration", "problem", text, "--api-key-file FILE"))
    return found, settings


def models(settings: Settings) -> list[Finding]:
    """Whether the files of each model are there and sound, those of `models_dirs` too. Reads headers only."""
    elsewhere = discover(settings.server.models_dirs)
    try:
        catalog = Catalog(with_discovered(settings, elsewhere))
    except CatalogError as problem:
        return [told("models", "problem", line) for line in str(problem).splitlines()]
    entries = catalog.entries
    wrong = without_engine(entries)
    found = [told("models", "warning", text) for text in (*elsewhere.problems, *catalog.unknown_names)]
    found += [Finding("models", "problem", f"{name}: {why}") for name, why in wrong.items()]
    for entry in entries:
        if entry.name in wrong:
            continue
        try:
            header = look(entry).header
        except HeaderError as problem:
            found.append(told("models", "problem", f"{entry.name}: {problem}"))
            continue
        found += [Finding("models", "note", f"{entry.name}: {remark}") for remark in header.remarks]
        found.append(Finding("models", "ok", f"{entry.name}: {entry.path}"))
    return found


@dataclass(frozen=True)
class Port:
    """Who has the configured address."""

    url: str
    taken: bool
    """Something listens there."""
    status: Mapping[str, Any] | None = None
    """The server's status, where it is ours and tells it."""
    wants_key: bool = False


def look_at_port(settings: Settings, url: str | None = None) -> Port:
    """Knock at an address, the configured one where none is named."""
    client = client_for(url, settings)
    if url is None and settings.server.port == 0:
        return Port(client.base, taken=False)
    try:
        parts = urlsplit(client.base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_ANSWERS_WITHIN_S).close()
    except (OSError, ValueError):  # the latter for what is no address
        return Port(client.base, taken=False)
    try:
        answer = client.response("/v1/status")
        document = answer.json() if answer.status_code == 200 else None
    except (CliError, ValueError):
        return Port(client.base, taken=True)
    ours = isinstance(document, dict) and "memory" in document and "models" in document
    return Port(client.base, taken=True, status=document if ours else None, wants_key=answer.status_code == 401)


def port(seen: Port) -> list[Finding]:
    """Whether the server can have its port, or has it already."""
    if not seen.taken:
        return [Finding("port", "ok", f"{seen.url} is free: no server runs there")]
    remedy = "end it, or --port, or `port` in the configuration"
    return _answering("port", seen) or [Finding("port", "problem", f"another program has {seen.url}", remedy)]


def named_server(seen: Port) -> list[Finding]:
    """Whether the server answers that the commands of this shell ask, by --url or ONECARD_URL."""
    if not seen.taken:
        text = f"nothing answers at {seen.url}, which --url or ONECARD_URL names"
        return [Finding("server", "problem", text, "start that server, or unset ONECARD_URL")]
    text = f"what answers at {seen.url}, which --url or ONECARD_URL names, is no onecard"
    return _answering("server", seen) or [Finding("server", "problem", text, "name a server, or unset ONECARD_URL")]


def _answering(subject: str, seen: Port) -> list[Finding]:
    """What a server of ours says; nothing where it is none."""
    if seen.status is not None:
        listed = seen.status["models"]
        loaded = [str(one["name"]) for one in listed if one.get("state") == "ready"]
        text = f"onecard answers at {seen.url}: {len(listed)} models, loaded: {', '.join(loaded) or 'none'}"
        failed = [(one["name"], one["last_error"]) for one in listed if one.get("last_error")]
        told_errors = [told("models", "warning", f"{name}: last error: {error}") for name, error in failed]
        return [Finding(subject, "ok", text), *told_errors]
    if seen.wants_key:
        text = f"a server at {seen.url} wants a key, so nothing more is known of it"
        return [Finding(subject, "note", text, "set ONECARD_API_KEY to one of its keys")]
    return []


def pids_of(*seen: Port) -> frozenset[int]:
    """The workers of servers of this machine that were asked."""
    here = [one.status for one in seen if one.status is not None and is_loopback(urlsplit(one.url).hostname or "")]
    return frozenset(int(model["pid"]) for status in here for model in status["models"] if model.get("pid"))


def proxies() -> list[Finding]:
    """Whether clients of this machine would ask a proxy for a server on this machine."""
    named = getproxies()
    if not (named.get("http") or named.get("all")) or proxy_bypass("127.0.0.1"):
        return []
    text = "HTTP_PROXY is set, and NO_PROXY does not name 127.0.0.1: clients may ask the proxy for this server"
    return [Finding("network", "warning", text, "export NO_PROXY=localhost,127.0.0.1,::1")]
