"""`onecard draw`: a prompt becomes a file with an image, and a terminal shows how far it is."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import ConfigFile, Url
from server.cli.completing import model_names

if TYPE_CHECKING:
    from server.cli.client import Client

_PATH = "/v1/images/generations"
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_OPTIONS = {
    "prompt": "PROMPT",
    "size": "--size",
    "seed": "--seed",
    "steps": "--steps",
    "guidance_scale": "--guidance",
    "scheduler": "--scheduler",
    "negative_prompt": "--negative",
    "short_prompt": "--short-prompt",
}
"""What a person calls the fields of the request."""


def draw(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model that draws, or its folder.", autocompletion=model_names)
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What is to be seen.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A .png, .jpg or .webp; - is stdout.")],
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Such as 512x768; else the model's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed draws the same image.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of denoising.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="How closely the prompt is followed.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm++ ...; else the model's own.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What is not to be seen.")] = None,
    short_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What CLIP reads where T5 reads the prompt.")
    ] = None,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Draw an image."""
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import CliError, ExitCode
    from server.cli.finding import server_for

    form = "png" if str(output) == "-" else _FORMATS.get(output.suffix.lower())
    if form is None:
        raise CliError(f"{output} names no format. hint: {', '.join(_FORMATS)}", ExitCode.USAGE)
    if not output.absolute().parent.is_dir():
        raise CliError(f"{output.absolute().parent} is no folder", ExitCode.USAGE)
    asked = {
        "prompt": prompt,
        "output_format": form,
        "size": size,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "negative_prompt": negative,
        "short_prompt": short_prompt,
    }
    with server_for(model, url=url, config=config, settings=loaded_or_exit(config).settings) as (client, name):
        done = _drawn(client, {"model": name, "stream": True, **{k: v for k, v in asked.items() if v is not None}})
    image = base64.b64decode(done["b64_json"])
    if str(output) == "-":
        sys.stdout.buffer.write(image)
        return
    _write(output, image)
    sys.stderr.write(f"{output}: {done['size']}, seed {done['seed']}, {len(image)} bytes\n")


def _drawn(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """The last event. Raises CliError."""
    from server.cli.console import CliError, ExitCode
    from server.cli.following import PassingLine, waiting_in_words

    line, done = PassingLine(), None

    def tell(comment: str) -> None:
        words = comment if comment.startswith("step ") else waiting_in_words(asked["model"], comment)
        if words is not None:
            line.show(words)

    try:
        with client.stream(_PATH, asked, on_comment=tell) as documents:
            for document in documents:
                done = document
    except CliError as error:
        if (option := _OPTIONS.get(error.param or "")) is None:
            raise
        raise CliError(f"{option}: {error.message}", ExitCode.USAGE) from None
    finally:
        line.clear()
    if done is None:
        raise CliError(f"{client.base} sent no image")
    return done


def _write(output: Path, image: bytes) -> None:
    """Whole, or not at all. Raises CliError."""
    from server.cli.console import CliError

    half = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        half.write_bytes(image)
        half.replace(output)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise CliError(f"{output} cannot be written: {(error.strerror or 'the disk refuses').lower()}") from None
