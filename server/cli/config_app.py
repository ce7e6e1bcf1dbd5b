"""`onecard config`: its commands with their flags and help; `server.cli.configuration` does their work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.arguments import AsJson, ConfigFile, Url

config_app = typer.Typer(help="Write, check and show the configuration.", no_args_is_help=True)


@config_app.command("init")
def config_init(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented configuration file to start from."""
    from server.cli.configuration import write_example

    write_example(output, force=force)


@config_app.command("check")
def config_check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check the configuration and the models it names; exit code 2 when something is wrong."""
    from server.cli.configuration import check

    check(config, as_json=as_json)


@config_app.command("reload")
def config_reload(url: Url = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Have the running server read its configuration again; no stream is cut.

    A server with keys wants an admin key in ONECARD_API_KEY.
    """
    from server.cli.configuration import reload

    reload(url, config, as_json=as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    from server.cli.configuration import show_schema

    show_schema()


@config_app.command("show")
def config_show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print the effective configuration and where each value comes from; keys are hidden."""
    from server.cli.configuration import show

    show(config, as_json=as_json)
