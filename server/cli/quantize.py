"""`onecard quantize`: flags become an order for the `quantize` package, its progress and results become lines."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.arguments import AsJson, ConfigFile
from server.cli.console import CliError, ExitCode, say, write, write_json
from server.cli.following import PassingLine
from server.cli.tuned import TUNED, tuned_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import Device
    from quantize.done import Done
    from quantize.order import Order
    from server.tuning.look import Made

_MAKING = "How it is made"
_JUDGING = "What it costs"


def quantize(
    source: Annotated[
        str,
        typer.Argument(help="A configured model, a folder (or cached org/repo), GGUF, smollm2, adapter or ft:..."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", "-t", metavar="TYPES", help="Q4_K_M,Q8_0,F16,bnb-4bit,...; hf: a folder; gguf: an adapter's file."
        ),
    ] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder, or the one .gguf file.")
    ] = Path(),
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Folder to merge an adapter into; the .gguf for --to gguf.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="How outputs are called (the source's name).")] = None,
    fit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Make the largest type that fits, e.g. 11GiB.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of context that --fit counts with.", min=1)] = 8192,
    device: Annotated[
        str, typer.Option(help="Where outputs will be served: auto (as `serve` chooses here), cuda or cpu.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes and predicted memory, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that are there.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix to use, or to write.", rich_help_panel=_MAKING),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Compute the importance matrix.", rich_help_panel=_MAKING)
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Another type for matching tensors.", rich_help_panel=_MAKING),
    ] = None,
    output_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the output matrix.", rich_help_panel=_MAKING)
    ] = None,
    embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the token embedding.", rich_help_panel=_MAKING)
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="Every matrix in one type.", rich_help_panel=_MAKING)] = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Take a source that is quantised already.", rich_help_panel=_MAKING)
    ] = False,
    converter: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Convert with your llama.cpp checkout.", rich_help_panel=_MAKING)
    ] = None,
    pre_tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take this although it differs.", rich_help_panel=_MAKING)
    ] = None,
    allow_nan: Annotated[
        bool, typer.Option("--allow-nan", help="Convert damaged weights as they are.", rich_help_panel=_MAKING)
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads; 0 takes all.", min=0, rich_help_panel=_MAKING)] = 0,
    report: Annotated[
        bool, typer.Option("--report", help="Measure what each output lost.", rich_help_panel=_JUDGING)
    ] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Measure this existing file or folder too.", rich_help_panel=_JUDGING),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to measure on.", rich_help_panel=_JUDGING)
    ] = None,
    windows: Annotated[
        int, typer.Option(help="Windows of 512 tokens to measure at most.", min=1, rich_help_panel=_JUDGING)
    ] = 40,
) -> None:
    """Make GGUF files and bitsandbytes folders from a model, and a report card of what each type costs."""
    from server.settings.sizes import parse_size

    errors, types, orders = _package()
    try:
        fit_bytes = parse_size(fit) if fit is not None else None
    except ValueError as problem:
        raise CliError(f"--fit {fit}: {problem}", ExitCode.USAGE) from None
    try:
        kinds = tuple(types.parse_types(to)) if to else ()
        found = _tuned(source) if source.startswith(TUNED) else None
        order = orders.Order(
            source=_source(source, config) if found is None else Path(found.model.path),
            out=output,
            types=kinds,
            base=_source(base, config) if base is not None else _base_of(found, kinds),
            name=name or _name_of(found),
            fit_bytes=fit_bytes,
            context=context,
            device=_device(device, config),
            imatrix=imatrix,
            calibrate=calibrate,
            converter=converter,
            output_type=output_type,
            embedding_type=embedding_type,
            overrides=tuple(_override(one) for one in tensor_type or []),
            pure=pure,
            requantize=requantize,
            pre=pre_tokenizer,
            allow_nan=allow_nan,
            report=report,
            text=text,
            windows=windows,
            also=tuple(compare or []),
            dry_run=dry_run,
            force=force,
            threads=threads,
        )
        _run(order, as_json=as_json)
    except errors.QuantizeError as problem:
        code = ExitCode.DOES_NOT_FIT if problem.does_not_fit else ExitCode.USAGE if problem.usage else ExitCode.ERROR
        raise CliError(problem.message, code) from None


def _package() -> tuple[Any, Any, Any]:
    """The parts of the `quantize` package that cost nothing to import."""
    from quantize import errors, order, types

    return errors, types, order


def _run(order: Order, *, as_json: bool) -> None:
    try:
        from quantize.work import run
    except ModuleNotFoundError as problem:
        raise CliError(f"{problem.name} is not installed. hint: `make install` installs it") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals clean up on their way out
    try:
        done = run(order, _Console())
    except KeyboardInterrupt as stop:
        written = ", ".join(str(path) for path in getattr(stop, "written", ()))
        kept = f"finished: {written}" if written else "what was there is as it was"
        raise CliError(f"interrupted: no half output is left; {kept}", ExitCode.INTERRUPTED) from None
    if as_json:
        write_json(_as_json(order, done))
    else:
        _print(order, done)


def _print(order: Order, done: Done) -> None:
    from quantize import estimator
    from quantize.report.card import aligned, as_table

    if done.estimates or done.card:
        write(
            as_table(done.card) if done.card else aligned(estimator.table(done.estimates, done.contexts, order.device))
        )
        write(f"MEMORY is predicted for one request of so many tokens on {order.device} (--device)")
    for path in [*done.written, *done.reports]:
        say(f"wrote {path}")
    gguf = next((path for path in done.written if path.suffix == ".gguf" and "imatrix" not in path.name), None)
    made = gguf or next((path for path in done.written if not done.estimates), None)
    if order.base is not None and order.base.is_file() and made is not None:
        say(f'serve it: in the table of {order.base.name}, adapters = {{ {order.model_name} = "{made}" }}')
    elif made is not None and not order.dry_run:
        say(f"serve it: onecard serve --model {order.model_name}={made}")


def _as_json(order: Order, done: Done) -> dict[str, Any]:
    outputs = [
        {
            "type": one.type_name,
            "size_bytes": one.n_bytes,
            "bits_per_weight": round(one.bits_per_weight, 4),
            "remarks": list(one.remarks),
            "memory_bytes": {str(context): one.memory(context, order.device) for context in done.contexts},
        }
        for one in done.estimates
    ]
    return {
        "device": order.device,
        "outputs": outputs,
        "written": [str(path) for path in [*done.written, *done.reports]],
        "report": json.loads(json.dumps(asdict(done.card))) if done.card else None,
    }


def _device(text: str, config: Path | None) -> Device:
    """What is assumed; `auto` is what a server of this configuration would take on this machine."""
    from server.cli.configuration import loaded_or_exit
    from server.memory.opening import DeviceError, open_memory

    match text:
        case "cuda" | "cpu":
            return text
        case "auto":
            try:
                return asyncio.run(open_memory(loaded_or_exit(config).settings.memory)).device
            except DeviceError as problem:
                raise CliError(str(problem)) from None
    raise CliError(f"--device {text!r}: auto, cuda or cpu", ExitCode.USAGE)


def _source(text: str, config: Path | None) -> Path:
    """Files of a configured model or of its adapter, a path, a built-in model, or one of the local Hugging Face cache.

    Raises CliError.
    """
    from backends.files.adapters import PEFT_CONFIG
    from backends.files.model_files import is_there
    from server.cli.configuration import loaded_or_exit, with_folders
    from server.cli.finding import owners
    from server.settings.builtin import BUILT_IN
    from server.settings.references import LocateError, adapter_place, locate

    settings = with_folders(loaded_or_exit(config).settings).settings
    if (named := owners(settings).get(text)) is not None:
        text = settings.models[named].path_of(named, text)
    path = Path(text).expanduser()
    if text not in BUILT_IN and path.exists():
        return path
    try:
        return Path(place) if is_there(Path(place := adapter_place(text)) / PEFT_CONFIG) else locate(text).path
    except LocateError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None


def _tuned(name: str) -> Made:
    """What a fine-tuning job has made, by the name that is served. Raises CliError."""
    found = tuned_models()
    if name not in found:
        known = ", ".join([*found][-3:])
        hint = f"the last ones are {known}" if known else "`onecard train` makes one"
        raise CliError(f"no fine-tuning job has made {name[:120]}. hint: {hint}", ExitCode.USAGE)
    return found[name]


def _base_of(found: Made | None, kinds: Sequence[str]) -> Path | None:
    """The folder that was taught, where the result is to be merged into it."""
    from quantize.types import GGUF

    return None if found is None or found.model.whole or GGUF in kinds else found.base


def _name_of(found: Made | None) -> str | None:
    """`chat-pirate` of `ft:chat:pirate:5f3a9c21`."""
    return None if found is None else re.sub(r"[^\w.-]", "-", found.model.name.removeprefix(TUNED).rpartition(":")[0])


def _override(text: str) -> tuple[str, str]:
    pattern, sign, type_name = text.rpartition("=")
    if not sign or not pattern or not type_name:
        raise CliError(f"--tensor-type {text}: write REGEX=TYPE, for example 'ffn_down=Q6_K'", ExitCode.USAGE)
    return pattern, type_name


class _Console:
    """Progress on stderr: one line that changes in a terminal, finished stages only elsewhere."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._line = PassingLine()

    def line(self, text: str) -> None:
        """A line of its own."""
        self._line.clear()
        say(text)

    def progress(self, what: str, done: float, total: float, *, left_s: float | None = None) -> None:
        """At most ten times a second."""
        now = time.monotonic()
        if done >= total:
            self._line.clear()
        elif now - self._shown_at >= 0.1:
            self._shown_at = now
            left = f", {left_s:.0f} s left" if left_s is not None else ""
            self._line.show(f"{what}  {done / max(total, 1):4.0%}{left}")
