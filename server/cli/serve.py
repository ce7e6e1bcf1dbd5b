"""`onecard serve`: settings, listener and application put together, and the words a user sees when it is ready."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.checkup import Checkup, look_over, without_engines
from server.cli.configuration import loaded_or_exit, refuse_open_listener, with_folders
from server.cli.console import CliError, ExitCode, harmless, write
from server.cli.early import end_quietly
from server.cli.greeting import greeting, greeting_line
from server.cli.lifecycle import raise_file_limit, serve_until_told
from server.cli.logs import configure_logging
from server.cli.pull import fetch_missing
from server.cli.watching import Watched, looked_at
from server.settings.config_source import default_config_file, load_settings
from server.settings.named_models import CatalogError
from server.traces import TracesError

if TYPE_CHECKING:
    from server.cli.watching import State
    from server.pool.pool import Pool
    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings
    from server.settings.config_source import Loaded
    from server.settings.sections import ServerSection

log = logging.getLogger("onecard.serve")
_LEAST_FILES = 32
_ENOUGH_FILES = 256
_LOOPBACKS = ("127.0.0.1", "::1")
_TRIES_FOR_PORT = 8
_GREETING_WAITS_S = 1.0
"""For a look at the models' files; the server answers meanwhile."""


def run_server(config: Path | None, *, flags: dict[str, Any], pull: bool, exit_with_stdin: bool) -> None:
    """Serve until a signal; returns after a drain."""
    end_quietly()
    few = _few_files(raise_file_limit())
    loaded, as_read = _loaded(config, flags)
    settings = loaded.settings
    refuse_open_listener(settings)
    configure_logging(settings.logging)
    from server.app import create_app
    from server.memory.opening import DeviceError

    if pull:
        fetch_missing(settings, config)
    found = with_folders(settings)
    settings = found.settings
    for text in found.notes:
        log.warning("models_dir note=%s", json.dumps(text, ensure_ascii=False))
    try:
        app = create_app(
            settings, read=lambda: with_folders(load_settings(config, flags=flags).settings), config=config
        )
    except (CatalogError, TracesError) as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    _refuse_missing(loaded, app.state.catalog.entries)
    listeners, note = bind(settings.server)
    url = address(settings.server.host, listeners[0].getsockname()[1])

    async def announce() -> None:
        entries = app.state.catalog.entries
        checkup = await _checkup_soon(app.state.pool, entries)
        states = {entry.name: str(app.state.pool.info(entry.name).state.value) for entry in entries}
        keyed = bool(settings.every_key)
        notes = [text for text in (note, few, *(f"note: {r}" for r in app.state.catalog.remarks)) if text]
        memory = app.state.pool.status().memory
        if settings.logging.format == "json":
            for text in notes:
                log.warning("note text=%s", json.dumps(text, ensure_ascii=False))
            write(greeting_line(url, entries, states=states, checkup=checkup, memory=memory))
        else:
            told = greeting(url, entries, states=states, keyed=keyed, checkup=checkup, memory=memory, notes=notes)
            write(harmless(told))
        for text in memory.warnings:
            log.warning("card_unused reason=%s", json.dumps(text, ensure_ascii=False))
        log.info("ready url=%s models=%d", url, len(entries))

    drain_s = settings.server.drain_s
    try:
        asyncio.run(
            serve_until_told(
                app,
                listeners,
                drain_s=drain_s,
                announce=announce,
                until_stdin=exit_with_stdin,
                watched=Watched(lambda now: watched_files(now, config), as_read) if settings.server.watch else None,
            )
        )
    except DeviceError as problem:
        raise CliError(str(problem)) from None
    finally:
        end_quietly()


def _loaded(config: Path | None, flags: dict[str, Any]) -> tuple[Loaded, State | None]:
    """The configuration, and how its files were before it was read; which files these are, a first reading tells."""
    loaded = loaded_or_exit(config, flags=flags)
    if not loaded.settings.server.watch:
        return loaded, None
    as_read = looked_at(watched_files(loaded.settings, config))
    return loaded_or_exit(config, flags=flags), as_read


def watched_files(settings: Settings, config: Path | None) -> list[Path]:
    """What the configuration is made of."""
    server = settings.server
    key_file = [Path(server.api_key_file)] if server.api_key_file is not None else []
    folders = [Path(folder).expanduser() for folder in server.models_dirs]
    return [config or default_config_file(), *key_file, *folders]


def _few_files(limit: int | None) -> str | None:
    """What to say of a low limit of open files. Raises CliError where it is too low to serve."""
    if limit is None or limit >= _ENOUGH_FILES:
        return None
    told = f"this process may open {limit} files"
    if limit < _LEAST_FILES:
        raise CliError(f"{told}, and needs {_LEAST_FILES} at least. hint: ulimit -n 1024")
    return f"warning: {told}, and each connection and each model takes some; others wait. hint: ulimit -n 1024"


def _refuse_missing(loaded: Loaded, entries: list[CatalogEntry]) -> None:
    """Exit code 2 for a missing model that was named by a flag just now; one of a file is a warning."""
    names = {name for entry in entries for name in entry.config.called(entry.name)}
    unknown = [name for name in loaded.settings.scheduler.preload if name not in names]
    if unknown and loaded.origin("scheduler", "preload") == "flag":
        raise CliError(f"--preload {unknown[0]}: there is no such model", ExitCode.USAGE)
    for entry in entries:
        if (
            entry.missing is not None
            and entry.name in loaded.settings.models
            and loaded.origin("models", entry.name, "path") in ("flag", None)
        ):
            raise CliError(f"model '{entry.name}': {entry.missing}", ExitCode.USAGE)


async def _checkup_soon(pool: Pool, entries: list[CatalogEntry]) -> Checkup:
    """What is known of the models for the greeting; on a slow disk what has come, and the log has the rest later."""
    found = without_engines(entries)
    looking = asyncio.create_task(look_over(pool, entries, found))
    looking.add_done_callback(_log_problems)
    done, _ = await asyncio.wait({looking}, timeout=_GREETING_WAITS_S)
    return looking.result() if done and looking.exception() is None else found


def _log_problems(looking: asyncio.Task[Checkup]) -> None:
    if looking.cancelled():
        return
    if (error := looking.exception()) is not None:
        log.error("checkup_failed", exc_info=error)
        return
    for name, why in looking.result().unusable.items():
        log.warning("unusable model=%s reason=%s", json.dumps(name), json.dumps(why, ensure_ascii=False))


def bind(server: ServerSection) -> tuple[list[socket.socket], str | None]:
    """Listening sockets, and what the greeting should say about them. Raises CliError with what to do about it.

    `localhost` is both loopback addresses, because clients ask either first: ::1 where that is to be had.
    """
    if server.host.lower() != "localhost":
        return [_listening(_target(server.host, server.port), server)], None
    for _ in range(_TRIES_FOR_PORT):
        first = _listening(_target(_LOOPBACKS[0], server.port), server)
        port = first.getsockname()[1]
        try:
            second = _open(_target(_LOOPBACKS[1], port))
        except (OSError, CliError) as problem:
            if server.port == 0 and isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE:
                first.close()  # another free one may be free on both
                continue
            return [first], _alone(problem, port)
        return [first, second], f"127.0.0.1 and ::1 both listen on port {port}"
    raise CliError("no port is free on both 127.0.0.1 and ::1. hint: --host 127.0.0.1")


def _alone(problem: Exception, port: int) -> str:
    if isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE:
        return (
            f"warning: another program has [::1]:{port}, and clients that try ::1 first reach that one. "
            "hint: --port takes another, or give clients http://127.0.0.1"
        )
    return "only 127.0.0.1 listens: this machine has no IPv6 loopback"


def _target(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Where a socket for the host is bound, IPv4 where there is a choice. Raises CliError."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise CliError(f"server.host = '{host}' is no address of this machine", ExitCode.USAGE) from None
    family, _, _, _, target = min(found, key=lambda item: item[0] != socket.AF_INET)
    return family, target


def _listening(target: tuple[socket.AddressFamily, tuple[Any, ...]], server: ServerSection) -> socket.socket:
    try:
        return _open(target)
    except OSError as problem:
        raise _bind_error(problem, server) from None


def _open(target: tuple[socket.AddressFamily, tuple[Any, ...]]) -> socket.socket:
    # asyncio turns Nagle's delay off for sockets that say that they are TCP. With it the second part of an answer waits
    # 40 ms for the client's acknowledgement of the first.
    listener = socket.socket(target[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target[1])
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
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
