"""`onecard transcribe`: a recording becomes text or subtitles, which are written as they come."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import ConfigFile, Url
from server.cli.completing import model_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.cli.client import Client

_TIMES = re.compile(r"--> (\d\d:\d\d:\d\d)")
_PATHS = {False: "/v1/audio/transcriptions", True: "/v1/audio/translations"}


def transcribe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording: wav, mp3, m4a, ogg, webm, flac ...")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model of the server, or a Whisper folder.", autocompletion=model_names),
    ] = None,
    srt: Annotated[bool, typer.Option("--srt", help="Write subtitles for SubRip.")] = False,
    vtt: Annotated[bool, typer.Option("--vtt", help="Write subtitles for WebVTT.")] = False,
    language: Annotated[str | None, typer.Option(metavar="L", help="de, en ...; else the recording tells.")] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Write English, whatever is spoken.")] = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Write down what is said in a recording."""
    from server.cli.client import client_for
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import CliError, ExitCode
    from server.cli.finding import server_for

    if srt and vtt:
        raise CliError("--srt and --vtt are two kinds of subtitles. hint: name one", ExitCode.USAGE)
    if translate and language is not None:
        raise CliError("--translate writes English, so it takes no --language", ExitCode.USAGE)
    if not file.is_file():
        raise CliError(f"{file} is no file", ExitCode.USAGE)
    settings = loaded_or_exit(config).settings
    asked = {"response_format": "srt" if srt else "vtt" if vtt else "json", "stream": "true"}
    asked |= {} if language is None else {"language": language}
    if model is None:
        client = client_for(url, settings)
        _write(client, file, {**asked, "model": _listening(client)}, translate=translate)
        return
    with server_for(model, url=url, config=config, settings=settings) as (client, name):
        _write(client, file, {**asked, "model": name}, translate=translate)


def _listening(client: Client) -> str:
    """The server's model for recordings. Raises CliError."""
    from server.cli.console import CliError, ExitCode

    found = [one["id"] for one in client.get("/v1/models")["data"] if "transcription" in one.get("capabilities", [])]
    if len(found) == 1:
        return str(found[0])
    told = f"several models that hear: {', '.join(found)}" if found else "no model that hears"
    raise CliError(f"{client.base} has {told}. hint: --model names one, or a Whisper folder", ExitCode.USAGE)


def _write(client: Client, file: Path, asked: dict[str, Any], *, translate: bool) -> None:
    with file.open("rb") as recording, client.stream(_PATHS[translate], asked, file=recording) as documents:
        for piece in _pieces(documents):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n" if asked["response_format"] == "json" else "")


def _pieces(documents: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The text as it comes; how far it is stands on a terminal beside a file that it goes to."""
    from server.cli.following import PassingLine

    line = None if sys.stdout.isatty() else PassingLine()
    n_words = 0
    for document in documents:
        if document["type"] != "transcript.text.delta":
            continue
        yield (delta := str(document["delta"]))
        n_words += len(delta.split())
        if line is not None:
            times = _TIMES.findall(delta)
            line.show(times[-1] if times else f"{n_words} words")
    if line is not None:
        line.clear()
