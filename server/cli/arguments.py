"""Arguments and options that several commands have: one name, one help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.completing import model_names

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML configuration file.")]
AnyModel = Annotated[
    str,
    typer.Argument(
        help="A configured model, one of the server, a path, an hf: reference, or one that is built in.",
        autocompletion=model_names,
    ),
]
ServedModel = Annotated[str, typer.Argument(help="A model of the server.", autocompletion=model_names)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="ONECARD_URL", metavar="URL", help="Address of the server (its key: ONECARD_API_KEY)."
    ),
]
