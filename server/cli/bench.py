"""`onecard bench`: how fast a model answers, at several numbers of requests at once, and against its bare loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from backends.workload import Workload
from server.bench.baseline import Baseline, loop_of
from server.bench.baseline import measure as measure_baseline
from server.bench.measure import TEXT, Row, Target, measure
from server.bench.picture import as_svg
from server.bench.report import Report, with_baseline
from server.cli.configuration import loaded_or_exit, with_folders
from server.cli.console import CliError, ExitCode, say, stdout, write, write_json
from server.cli.finding import owners, refuse_without_text, server_for
from server.cli.output import naming
from server.settings.listener import is_loopback
from server.settings.references import Located, LocateError, locate

if TYPE_CHECKING:
    from server.cli.client import Client
    from server.settings.config import Settings

STREAMS = (1, 2, 4, 8)
MOST_STREAMS = 255
OWN_CONTEXT = 2048
"""Tokens per request on a server of our own, or what the prompt and the answer take."""


def run_bench(
    model: str,
    *,
    parallel: str | None,
    n_prompt: int,
    n_generate: int,
    rounds: int,
    bare: bool,
    svg: Path | None,
    url: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Measure and print the figures, and draw them where asked to."""
    asked = _streams(parallel)
    _check_writable(svg)
    written = loaded_or_exit(config).settings
    settings = with_folders(written).settings
    context = max(OWN_CONTEXT, n_prompt + n_generate)
    own = {"parallel": max(asked or STREAMS) + 1, "context": context}
    with server_for(model, url=url, config=config, settings=written, overrides=own) as (client, name):
        refuse_without_text(client, name)
        target, status = _target(client, name)
        streams = _that_fit(asked, target, needed=n_prompt + n_generate)
        say(f"{name} on {client.base}: {n_prompt} tokens in, {n_generate} out, {_times(rounds)}")
        try:
            rows = measure(target, streams, n_prompt=n_prompt, n_generate=n_generate, rounds=rounds, say=say)
        except (RuntimeError, TimeoutError, OSError) as problem:
            raise CliError(f"{client.base}: {problem}") from None
    work = Workload(n_prompt=n_prompt, n_generate=n_generate, context=target.context, **_plan(status, settings))
    files = _files(model, settings) if is_loopback(urlsplit(target.url).hostname or "") else None
    baseline = _baseline(files, work, streams, rounds) if bare else Baseline("none", missing="not asked for")
    report = Report(
        model=name,
        backend=status["backend"],
        context=target.context,
        server_parallel=target.parallel,
        gpu_layers=work.gpu_layers,
        prompt_tokens=n_prompt,
        generate_tokens=n_generate,
        baseline=baseline.name,
        baseline_missing=baseline.missing,
        rows=with_baseline(rows, baseline),
    )
    _show(report, svg=svg, as_json=as_json)


def _streams(text: str | None) -> tuple[int, ...] | None:
    """`1,2,4` as numbers in order. Raises CliError."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 1 <= int(part) <= MOST_STREAMS for part in parts):
        raise CliError(f"--parallel {text!r}: numbers from 1 to {MOST_STREAMS}, such as 1,2,4,8", ExitCode.USAGE)
    return tuple(sorted({int(part) for part in parts}))


def _check_writable(svg: Path | None) -> None:
    """Refuse now what could not be written after minutes. Raises CliError."""
    if svg is not None and not svg.expanduser().absolute().parent.is_dir():
        raise CliError(f"--svg {svg}: there is no folder {svg.parent}", ExitCode.USAGE)


def _target(client: Client, name: str) -> tuple[Target, dict[str, Any]]:
    """The loaded model, and its line of the server's status. Raises CliError."""
    if not client.base.startswith("http://"):
        raise CliError(f"{client.base}: bench speaks plain http only", ExitCode.USAGE)
    tokens = client.post("/tokenize", {"model": name, "content": TEXT})["tokens"]
    lines = {line["name"]: line for line in client.get("/v1/status")["models"]}
    told = client.get(f"/v1/models/{name}")
    status = lines[told.get("parent") or told["id"]]  # an adapter is loaded with its base
    if not status["context"] or not tokens:
        raise CliError(f"{client.base} did not load {name}")
    return Target(client.base, client.key, name, status["context"], status["parallel"], tokens), status


def _that_fit(asked: tuple[int, ...] | None, target: Target, *, needed: int) -> tuple[int, ...]:
    """The numbers of streams that the model decodes at once. Raises CliError where more were asked for."""
    if needed > target.context:
        raise CliError(f"{target.model} has context {target.context}. hint: --prompt and --generate below {needed}")
    fitting = tuple(count for count in asked or STREAMS if count <= target.parallel)
    if asked is not None and fitting != asked:
        hint = f"--parallel {target.parallel}, or raise `parallel` of the model"
        raise CliError(
            f"--parallel {max(asked)}: the server decodes {target.parallel} of {target.model} at once. hint: {hint}"
        )
    return fitting


def _plan(status: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """How the server has loaded the model, for the baseline to do the same."""
    config = settings.models.get(status["name"])
    layers, all_layers = status["gpu_layers"] or 0, status["n_layers"] or 0
    return {
        "gpu_layers": -1 if layers and layers >= all_layers else layers,
        "kv_type": config.kv_type if config is not None else settings.defaults.kv_type,
    }


def _files(model: str, settings: Settings) -> Located | None:
    """The model's files, where this machine knows them."""
    known = owners(settings)
    try:
        return locate(settings.models[known[model]].path if model in known else model)
    except LocateError:
        return None


def _baseline(files: Located | None, work: Workload, streams: tuple[int, ...], rounds: int) -> Baseline:
    if files is None:
        return Baseline("none", missing="the model's files are not known here")
    say("the same without a server")
    return measure_baseline(loop_of(files.backend), files.path, files.backend, work, streams=streams, rounds=rounds)


def _times(rounds: int) -> str:
    return "once" if rounds == 1 else f"the best of {rounds}"


def _show(report: Report, *, svg: Path | None, as_json: bool) -> None:
    if svg is not None:
        with naming(svg):
            svg.expanduser().write_text(as_svg(report))
        say(f"wrote {svg}")
    if as_json:
        write_json(msgspec.to_builtins(report))
        return
    _table(report)


def _table(report: Report) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("AT ONCE", "TOK/S", "BARE", "SHARE", "TTFT", "TTFT MAX", "ITL", "ITL P99", "ITL MAX", "IN PREFILL")
    for title in titles:
        table.add_column(title, justify="right")
    for row in report.rows:
        table.add_row(*_cells(row))
    stdout().print(table)
    write(f"times in ms, context {report.context}; ITL is between texts: quick tokens may come several in one")
    if report.baseline_missing:
        write(f"BARE ({report.baseline}): n/a, {report.baseline_missing}")
    else:
        write(f"BARE is the {report.baseline} on the same work; SHARE is TOK/S over it")
    write("TTFT and ITL are of all rounds' requests: TTFT the median and the longest; TOK/S is the best round's")
    write("IN PREFILL is the longest ITL of the streams while a long prompt is computed beside them")


def _cells(row: Row) -> list[str]:
    share = "-" if row.efficiency is None else f"{row.efficiency:.2f}"
    times = [row.ttft_ms.p50, row.ttft_ms.max, row.itl_ms.p50, row.itl_ms.p99, row.itl_ms.max, row.prefill_itl_ms]
    return [str(row.parallel), _number(row.tokens_per_s), _number(row.bare_tokens_per_s), share, *map(_number, times)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"
