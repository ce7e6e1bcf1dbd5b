"""`onecard cluster`: several nodes behind one address through Ray Serve; brought up, shown, taken down."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from server.cli.arguments import AsJson, ConfigFile, Url

cluster_app = typer.Typer(help="Several nodes behind one address, through Ray Serve.", no_args_is_help=True)


@cluster_app.command()
def up(
    config: ConfigFile = None,
    nodes: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Nodes, at the least.")] = 1,
    most: Annotated[
        int | None, typer.Option("--most", min=1, max=1000, metavar="N", help="Nodes at the most, by what waits.")
    ] = None,
    idle: Annotated[
        float, typer.Option("--idle", min=1, metavar="S", help="Seconds without a waiting request until a node leaves.")
    ] = 600.0,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Where the cluster listens.")] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="The same.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster that runs; without it one on this machine.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, metavar="N", help="Processors that Ray counts for a node.")] = 1.0,
    gpus: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Cards of a node; 1 where Ray has any.")
    ] = None,
) -> None:
    """Bring nodes up behind one address; on this machine until Ctrl-C, on a running Ray until `down`."""
    from server.cli.clusters import Wish, bring_up

    bring_up(config, Wish(nodes, most or nodes, idle, host, port, address, cpus, gpus))


@cluster_app.command()
def status(url: Url = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the nodes, what they hold and what they do."""
    from server.cli.clusters import read_status, show_status
    from server.cli.console import write

    told = read_status(url, config)
    if as_json:
        write(json.dumps(told))
    else:
        show_status(told)


@cluster_app.command()
def down(
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster; without it the one of this machine.")
    ] = None,
) -> None:
    """Let the nodes drain and end. Of a Ray cluster that was there before only this application ends."""
    from server.cli.clusters import take_down

    take_down(address)
