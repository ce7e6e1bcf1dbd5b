"""`onecard serve`: settings, listener and application put together, and the words a user sees when it is ready."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from typing import TYPE_CHECKING, Any

from server.cli.checkup import Checkup, look_over
from server.cli.configuration import loaded_or_exit, refuse_open_listener
from server.cli.console import CliError, ExitCode, write
from server.cli.greeting import greeting
from server.cli.lifecycle import serve_until_told
from server.cli.logs import configure_logging
from server.settings.catalog import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from server.pool.pool import Pool
    from server.settings.catalog import CatalogEntry
    from server.settings.config import ServerSection
    from server.settings.config_source import Loaded

log = logging.getLogger("onecard.serve")
_GREETING_WAITS_S = 1.0
"""For a look at the models' files; the server answers meanwhile."""


def run_server(config: Path | None, *, flags: dict[str, Any], exit_with_stdin: bool) -> None:
    """Serve until a signal; returns after a drain."""
    loaded = loaded_or_exit(config, flags=flags)
    settings = loaded.settings
    refuse_open_listener(settings)
    configure_logging(settings.logging)
    from server.app import create_app
    from server.memory.memory import DeviceError

    try:
        app = create_app(settings)
    except CatalogError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    _refuse_missing(loaded, app.state.catalog.entries)
    listener = bind(settings.server)
    url = address(settings.server.host, listener.getsockname()[1])

    async def announce() -> None:
        entries = app.state.catalog.entries
        checkup = await _checkup_soon(app.state.pool, entries)
        states = {entry.name: str(app.state.pool.info(entry.name).state.value) for entry in entries}
        write(greeting(url, entries, states=states, keyed=bool(settings.server.api_keys), checkup=checkup))
        log.info("ready url=%s models=%d", url, len(entries))

    drain_s = settings.server.drain_s
    try:
        asyncio.run(serve_until_told(app, listener, drain_s=drain_s, announce=announce, until_stdin=exit_with_stdin))
    except DeviceError as problem:
        raise CliError(str(problem)) from None


def _refuse_missing(loaded: Loaded, entries: list[CatalogEntry]) -> None:
    """Exit code 2 for a missing model that was named by a flag just now; one of a file is a warning."""
    for entry in entries:
        if entry.missing is not None and loaded.origin("models", entry.name, "path") in ("flag", None):
            raise CliError(f"model '{entry.name}': {entry.missing}", ExitCode.USAGE)


async def _checkup_soon(pool: Pool, entries: list[CatalogEntry]) -> Checkup:
    """What is known of the models for the greeting; on a slow disk nothing, and the log has the problems later."""
    looking = asyncio.create_task(look_over(pool, entries))
    looking.add_done_callback(_log_problems)
    done, _ = await asyncio.wait({looking}, timeout=_GREETING_WAITS_S)
    return looking.result() if done and looking.exception() is None else Checkup()


def _log_problems(looking: asyncio.Task[Checkup]) -> None:
    if looking.cancelled():
        return
    if (error := looking.exception()) is not None:
        log.error("checkup_failed", exc_info=error)
        return
    for name, why in looking.result().unusable.items():
        log.warning("unusable model=%s reason=%s", json.dumps(name), json.dumps(why, ensure_ascii=False))


def bind(server: ServerSection) -> socket.socket:
    """A listening socket. Raises CliError with what to do about it."""
    try:
        found = socket.getaddrinfo(
            server.host.strip("[]"), server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError):
        raise CliError(f"server.host = '{server.host}' is no address of this machine", ExitCode.USAGE) from None
    family, kind, protocol, _, target = min(found, key=lambda item: item[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(target)
        listener.listen(2048)
    except OSError as problem:
        listener.close()
        raise _bind_error(problem, server) from None
    listener.setblocking(False)
    return listener


def _bind_error(problem: OSError, server: ServerSection) -> CliError:
    where = f"{server.host}:{server.port}"
    if problem.errno == errno.EADDRINUSE:
        hint = "is another onecard running? `onecard ps` asks it; --port 0 takes a free port"
        return CliError(f"{where} is in use. hint: {hint}")
    if problem.errno == errno.EACCES:
        return CliError(f"{where} may not be opened by this user. hint: ports below 1024 need rights; try --port 8080")
    return CliError(f"{where} cannot be opened: {problem.strerror}")


def address(host: str, port: int) -> str:
    """The URL a client on this machine uses."""
    host = host.strip("[]")
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
