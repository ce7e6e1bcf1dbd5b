"""`onecard batch`: a file of requests is given to a server, followed while it runs, and its answers are written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import ConfigFile, Url

if TYPE_CHECKING:
    from server.cli.client import Client
    from server.cli.following import PassingLine

_ID = "batch_"
_ENDED = ("completed", "failed", "cancelled", "expired")
_SHOWN_PROBLEMS = 5


def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Requests as OpenAI's batches have them, or a batch id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="For the answers; else beside the requests.")
    ] = None,
    window: Annotated[str, typer.Option(metavar="TIME", help="How long it may take: 24h, 3d.")] = "24h",
    detach: Annotated[bool, typer.Option("--detach", help="Print its id and leave it to the server.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the batch of this id.")] = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Run the requests of a file while the server has nothing else to do."""
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import CliError, ExitCode, write
    from server.cli.finding import running_server, server_for

    settings = loaded_or_exit(config).settings
    client = running_server(url, settings)
    if file.startswith(_ID):
        if client is None:
            raise CliError("no server runs that could know of it. hint: onecard serve", ExitCode.UNREACHABLE)
        if cancel:
            write(_told(client.post(f"/v1/batches/{file}/cancel", {})))
            return
        _follow(client, client.get(f"/v1/batches/{file}"), output or Path(f"{file}.answers.jsonl"), own=False)
        return
    if cancel:
        raise CliError("--cancel takes the id of a batch. hint: batch_...", ExitCode.USAGE)
    path = Path(file)
    endpoint, model = _first(path)
    answers = output or path.with_suffix(".answers.jsonl")
    if client is not None:
        begun = _begin(client, path, endpoint, window)
        if detach:
            write(begun["id"])
        else:
            _follow(client, begun, answers, own=False)
        return
    if detach:
        raise CliError("no server runs that a batch could be left to. hint: onecard serve", ExitCode.UNREACHABLE)
    with server_for(model, url=url, config=config, settings=settings) as (own, _):
        _follow(own, _begin(own, path, endpoint, window), answers, own=True)


def _first(path: Path) -> tuple[str, str]:
    """Endpoint and model of the first request. Raises CliError."""
    from server.cli.console import CliError, ExitCode

    try:
        with path.open("rb") as file:
            line = next((line for line in file if line.strip()), b"")
        request = json.loads(line)
        return str(request["url"]), str(request["body"]["model"])
    except OSError as problem:
        raise CliError(f"{path}: {(problem.strerror or 'it cannot be read').lower()}", ExitCode.USAGE) from None
    except (ValueError, KeyError, TypeError):
        like = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ...}}'
        raise CliError(f"{path}: its first line is no request. hint: {like}", ExitCode.USAGE) from None


def _begin(client: Client, path: Path, endpoint: str, window: str) -> dict[str, Any]:
    with path.open("rb") as data:
        uploaded = client.upload("/v1/files", {"purpose": "batch"}, name=path.name, file=data)
    asked = {"input_file_id": uploaded["id"], "endpoint": endpoint, "completion_window": window}
    begun: dict[str, Any] = client.post("/v1/batches", asked)
    return begun


def _follow(client: Client, batch: dict[str, Any], answers: Path, *, own: bool) -> None:
    """Tell how far it is until it has ended, and write its files. Raises CliError where something has failed."""
    from server.cli.console import CliError, ExitCode, say
    from server.cli.following import PassingLine, follow

    batch_id, line = batch["id"], PassingLine()
    batch = follow(
        batch,
        look=lambda: client.get(f"/v1/batches/{batch_id}"),
        rests=lambda batch: batch["status"] in _ENDED,
        tell=_Progress(line).tell,
        line=line,
        command=f"onecard batch {batch_id}",
        own=own,
    )
    for name, target in (("output_file_id", answers), ("error_file_id", answers.with_suffix(".errors.jsonl"))):
        if batch[name] is not None:
            client.download(f"/v1/files/{batch[name]}/content", target)
            say(f"{'answers' if target is answers else 'what failed'}: {target}")
    for problem in _problems(batch):
        say(problem)
    say(_told(batch))
    if batch["status"] != "completed" or batch["request_counts"]["failed"]:
        raise CliError(f"{batch['id']} has not answered everything", ExitCode.ERROR)


def _problems(batch: dict[str, Any]) -> list[str]:
    found = (batch["errors"] or {"data": []})["data"][:_SHOWN_PROBLEMS]
    return [f"line {one['line']}: {one['message']}" if one["line"] else one["message"] for one in found]


def _told(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    told = f"{batch['id']} is {batch['status']}: {counts['completed']} of {counts['total']} answered"
    return f"{told}, {counts['failed']} failed" if counts["failed"] else told


class _Progress:
    """How far a batch is, and what holds it up, once."""

    def __init__(self, line: PassingLine) -> None:
        self._line, self._began_s = line, time.monotonic()
        self._first: tuple[int, float] | None = None
        self._said: list[str] = []

    def tell(self, batch: dict[str, Any]) -> None:
        from server.cli.console import say

        if batch["status"] in _ENDED:
            return
        if (problems := _problems(batch)) != self._said:
            self._line.clear()
            for problem in problems:
                say(problem)
            self._said = problems
        self._line.show(self._far(batch["request_counts"], time.monotonic() - self._began_s))

    def _far(self, counts: dict[str, int], at_s: float) -> str:
        if not counts["total"]:
            return "reading the requests"
        done = counts["completed"] + counts["failed"]
        self._first = self._first or (done, at_s)
        told = f"{done} of {counts['total']}" + (f", {counts['failed']} failed" if counts["failed"] else "")
        n_since, since_s = done - self._first[0], at_s - self._first[1]
        if n_since and since_s:
            from server.cli.console import duration

            left_s = (counts["total"] - done) * since_s / n_since
            told += f", {n_since / since_s:.1f} a second, {duration(left_s)} left"
        return told
