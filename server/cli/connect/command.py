"""`onecard connect`: prints what a client needs to use this server, writes it, or takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.arguments import ConfigFile, Url
from server.cli.completing import model_names
from server.cli.console import CliError, ExitCode, say, write

if TYPE_CHECKING:
    from server.cli.connect.facts import Connection


def _clients(incomplete: str) -> list[str]:
    from server.cli.connect.clients import CLIENTS

    return [name for name in CLIENTS if name.startswith(incomplete)]


def connect(
    client: Annotated[
        str | None, typer.Argument(help="codex, claude, zed ...; without it all are listed.", autocompletion=_clients)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="The model it shall use; else the first.", autocompletion=model_names
        ),
    ] = None,
    write_it: Annotated[bool, typer.Option("--write", help="Write the client's file, with a backup.")] = False,
    undo_it: Annotated[bool, typer.Option("--undo", help="Put back what --write has changed.")] = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Show what a client needs to use this server: its file or environment, with the real models and context."""
    from server.cli.connect.clients import CLIENTS
    from server.cli.finding import nearest

    if client is None:
        width = max(map(len, CLIENTS))
        write("\n".join(f"{name:<{width}}  {known.about}" for name, known in CLIENTS.items()))
        return
    if client not in CLIENTS:
        hint = nearest(client, CLIENTS) or f"one of {', '.join(CLIENTS)}"
        raise CliError(f"'{client}' is no client that is known here. hint: {hint}", ExitCode.USAGE)
    if write_it and undo_it:
        raise CliError("--write and --undo contradict each other", ExitCode.USAGE)
    if undo_it:
        _undo(client)
        return
    from server.cli.configuration import loaded_or_exit
    from server.cli.connect.facts import connection
    from server.cli.logs import one_line

    to = connection(url, loaded_or_exit(config).settings, model=model)
    for note in to.notes:
        say(f"note: {one_line(note)}")
    if write_it:
        _write(client, to)
    else:
        _show(client, to)


def _show(client: str, to: Connection) -> None:
    """What is to be copied goes to stdout, everything else to stderr."""
    from server.cli.connect.clients import CLIENTS

    recipe = CLIENTS[client].recipe(to)
    for place, piece in enumerate(recipe.pieces):
        if place:
            write("")
        say(f"# {piece.title}")
        write(piece.text)
    for note in recipe.notes:
        say(f"note: {note}")
    if recipe.files:
        say(f"hint: `onecard connect {client} --write` writes it and keeps a backup, `--undo` puts it back")


def _write(client: str, to: Connection) -> None:
    from server.cli.connect import files
    from server.cli.connect.clients import CLIENTS

    recipe = CLIENTS[client].recipe(to)
    if not recipe.files:
        raise CliError(
            f"{client} has no file to write. hint: `onecard connect {client}` shows what to do", ExitCode.USAGE
        )
    plans = [files.plan(client, file) for file in recipe.files]
    for plan, done in zip(plans, files.write(client, plans), strict=True):
        kept = f"; what was there is in {done.backup}" if done.backup else ""
        write(f"wrote {done.path}{kept}")
        for key in plan.replaces:
            say(f"note: {key} had another value in it")
    for note in recipe.notes:
        say(f"note: {note}")
    say(f"hint: `onecard connect {client} --undo` puts it back")


def _undo(client: str) -> None:
    from server.cli.connect import files

    for done in files.undo(client):
        write(f"put back {done.path}" if done.backup else f"removed {done.path}, which was not there before")
