"""`onecard train`: a file teaches a model, on a running server or one of its own; the job is followed to its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import ConfigFile, Url
from server.cli.completing import model_names

if TYPE_CHECKING:
    from server.cli.client import Client
    from server.cli.following import PassingLine

_ID = "ftjob-"
_JOBS = "/v1/fine_tuning/jobs"
_ENDED = ("succeeded", "failed", "cancelled")
_KINDS = "lora, qlora, full, auto"


def train(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines, CSV or text; or the id of a job.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="The model to teach.", autocompletion=model_names)
    ] = "",
    suffix: Annotated[
        str | None, typer.Option(metavar="NAME", help="Stands in the new model's name; else the file's name.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(metavar="FILE", help="Examples to evaluate by.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times to go through the file.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of one step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate multiplier; 1: as is usual for the method.")] = None,
    method: Annotated[str | None, typer.Option(metavar="METHOD", help=f"One of {_KINDS}.")] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of the base of a qlora: nf4 or 8bit.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="End of a layer's name, such as q_proj; repeatable.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(metavar="TOKENS", help="Of one example.")] = None,
    cut_long: Annotated[bool, typer.Option("--cut-long", help="Cut examples that are longer.")] = False,
    packing: Annotated[bool, typer.Option("--packing", help="Let short examples share rows.")] = False,
    seed: Annotated[int | None, typer.Option(help="For the same steps again.")] = None,
    column: Annotated[str, typer.Option(metavar="NAME", help="Of a table: where the text stands.")] = "text",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, tell what it takes, train not.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and leave it to the server.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job of this id.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Pause the job of this id.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Have a paused job go on, and follow it.")] = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model from a file, while no request needs the memory."""
    from server.cli.configuration import loaded_or_exit
    from server.cli.console import CliError, ExitCode
    from server.cli.finding import running_server, server_for

    verbs = [verb for verb, is_asked in (("cancel", cancel), ("pause", pause), ("resume", resume)) if is_asked]
    if file.startswith(_ID):
        _refuse_beside_id(ctx, verbs)
        client = running_server(url, loaded_or_exit(config).settings)
        if client is None:
            raise CliError("no server runs that could know of it. hint: onecard serve", ExitCode.UNREACHABLE)
        _of_job(client, file, *verbs)
        return
    if verbs:
        raise CliError("--cancel, --pause and --resume take the id of a job. hint: ftjob-...", ExitCode.USAGE)
    if not model:
        raise CliError("a model has to be named. hint: --model NAME", ExitCode.USAGE)
    asked: dict[str, Any] = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": rate,
        "method": method,
        "quantization": quantization,
        "rank": rank,
        "targets": target or None,
        "max_length": max_length,
        "cut_long": cut_long or None,
        "packing": packing or None,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if dry_run:
        _show_plan(Path(file), model, asked, column=column, validated=validation is not None, config=config)
        return
    settings = loaded_or_exit(config).settings
    own = running_server(url, settings) is None
    if detach and own:
        raise CliError("no server runs that a job could be left to. hint: onecard serve", ExitCode.UNREACHABLE)
    with server_for(model, url=url, config=config, settings=settings) as (found, name):
        body: dict[str, Any] = {"model": name, "suffix": suffix or _suffix_of(Path(file))}
        body |= {"hyperparameters": asked} if asked else {}
        body |= {} if seed is None else {"seed": seed}
        job = _begin(found, Path(file), validation, column, body)
        if detach:
            _write(job["id"])
        else:
            _follow(found, job, own=own)


def _refuse_beside_id(ctx: typer.Context, verbs: list[str]) -> None:
    """Raises CliError for what a job that is there already cannot heed."""
    from server.cli.console import CliError, ExitCode

    if len(verbs) > 1:
        raise CliError(f"--{verbs[0]} and --{verbs[1]} contradict each other. hint: give one", ExitCode.USAGE)
    own = {"file", "cancel", "pause", "resume", "url", "config"}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if name not in own and source is not None and source.name == "COMMANDLINE":
            told = (
                f"{parameter.opts[0]} is for a new job, and an id names one that is there. hint: give the file instead"
            )
            raise CliError(told, ExitCode.USAGE)


def _of_job(client: Client, job_id: str, verb: str = "") -> None:
    """Another state for a job, or a look at it until its end."""
    if verb:
        job = client.post(f"{_JOBS}/{job_id}/{verb}", {})
        if verb != "resume":
            _write(_told(job))
            return
    _follow(client, client.get(f"{_JOBS}/{job_id}"), own=False)


def _write(text: str) -> None:
    from server.cli.console import write

    write(text)


def _show_plan(
    path: Path, model: str, asked: dict[str, Any], *, column: str, validated: bool, config: Path | None
) -> None:
    from server.cli.console import CliError, ExitCode
    from server.cli.train_file import training_lines
    from server.cli.train_plan import show_plan
    from server.errors import ApiError
    from server.schemas.fine_tuning import parse_fine_tuning

    try:
        wanted = parse_fine_tuning({"model": model, "training_file": "-", "hyperparameters": asked}).wanted()
    except ApiError as problem:
        raise CliError(problem.message, ExitCode.USAGE) from None
    with training_lines(path, column) as (_, checked):
        show_plan(model, wanted, checked, validated=validated, config=config)


def _suffix_of(path: Path) -> str | None:
    """The file's name, as a model's name can have it."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in path.stem)
    return name.lstrip("._-")[:64] or None


def _begin(client: Client, path: Path, validation: Path | None, column: str, body: dict[str, Any]) -> dict[str, Any]:
    body["training_file"] = _upload(client, path, column)
    if validation is not None:
        body["validation_file"] = _upload(client, validation, column)
    job: dict[str, Any] = client.post(_JOBS, body)
    return job


def _upload(client: Client, path: Path, column: str) -> str:
    from server.cli.train_file import training_lines

    with training_lines(path, column) as (lines, _):
        name = path.with_suffix(".jsonl").name
        return str(client.upload("/v1/files", {"purpose": "fine-tune"}, name=name, file=lines)["id"])


def _follow(client: Client, job: dict[str, Any], *, own: bool) -> None:
    """Tell how far it is until it has ended. Raises CliError where it has not succeeded."""
    from server.cli.console import CliError, ExitCode, say
    from server.cli.following import PassingLine, follow

    job_id, line = job["id"], PassingLine()
    job = follow(
        job,
        look=lambda: client.get(f"{_JOBS}/{job_id}"),
        rests=lambda job: job["status"] in _ENDED or job["paused"],
        tell=_Events(client, job_id, line).tell,
        line=line,
        command=f"onecard train {job_id}",
        own=own,
    )
    if job["paused"]:
        say(f"{_told(job)}: `onecard train {job_id} --resume` has it go on")
        return
    if job["status"] != "succeeded":
        raise CliError(_told(job), ExitCode.ERROR)
    say(_told(job))
    _write(job["fine_tuned_model"])


def _told(job: dict[str, Any]) -> str:
    """What a job is at, as a sentence."""
    if job["error"] is not None:
        return f"{job['id']} has failed: {job['error']['message']}"
    if job["status"] == "succeeded":
        return f"{job['id']} has succeeded: {job['trained_tokens']} tokens were learnt from"
    return f"{job['id']} is {'paused' if job['paused'] else job['status']}"


class _Events:
    """What happens to a job, a line each; and on a terminal one that tells how far it is."""

    def __init__(self, client: Client, job_id: str, line: PassingLine) -> None:
        self._client, self._path = client, f"{_JOBS}/{job_id}/events"
        self._line = line
        self._seen: set[str] = set()

    def tell(self, job: dict[str, Any]) -> None:
        from server.cli.console import say

        events = self._client.get(f"{self._path}?limit=100")["data"]
        for event in reversed(events):
            is_step = event["type"] == "metrics" and "learning_rate" in event["data"]
            if event["id"] not in self._seen and not is_step and event["level"] != "error":
                self._line.clear()
                say(event["message"])
        self._seen |= {event["id"] for event in events}
        self._line.show(_progress(job))


def _progress(job: dict[str, Any]) -> str:
    from server.cli.console import duration

    if job["status"] == "queued" and job["waiting_for"]:
        return f"waiting: {job['waiting_for']}"
    progress = job["progress"]
    if job["status"] != "running" or progress is None:
        return "reading the files" if job["status"] == "validating_files" else "loading the model"
    loss = "" if progress["loss"] is None else f", loss {progress['loss']:.3f}"
    left = "" if progress["seconds_left"] is None else f", {duration(progress['seconds_left'])} left"
    return f"step {progress['step']} of {progress['steps']}, epoch {progress['epoch']:.2f}{loss}{left}"
