"""`onecard pull`: a model from the hub into the Hugging Face cache, after its plan of a load was shown."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from server.cli.console import CliError, ExitCode, say, write, write_json, write_json_line
from server.cli.fit import capacity_for, plan_words
from server.cli.pull_progress import progress
from server.hub import choice as choices_of
from server.hub.choice import Choice, ChoiceError
from server.hub.download import check_room, fetch, missing_bytes
from server.hub.repository import HubError, Repository, look_up
from server.hub.standin import stand_in
from server.settings.builtin import BUILT_IN
from server.settings.references import HubReference, LocateError, is_page, locate, parse_hub_reference, parse_page
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from server.memory.capacity import Capacity
    from server.settings.config import Settings

_AUTO: Final = "auto"
_FOUR_BITS: Final = {"quantization": "bnb-4bit"}
_MOST_LOOKED_AT: Final = 12
_ADDRESS: Final = "write owner/name, owner/name:Q4_K_M or the address of the model's page"


def pull(
    text: str,
    *,
    quant: str | None,
    config: Path | None,
    as_json: bool = False,
    json_lines: bool = False,
    quiet: bool = False,
) -> Path:
    """Fetch a model, and print what may stand as its path, unless `quiet`. Raises CliError.

    With `json_lines` progress is lines of JSON on stdout, and the last line is what `as_json` prints.
    """
    reference = _reference(text, quant)
    try:
        repository = look_up(reference)
        if json_lines:
            write_json_line({"status": "pulling manifest"})
        for remark in choices_of.remarks(repository.files):
            say(f"note: {remark}")
        chosen, plan = _chosen(repository, reference, config)
        check_room(repository, chosen.files)
        to_come = missing_bytes(repository, chosen.files)
        with progress(as_lines=json_lines) as told:
            first = fetch(repository, chosen.files, told)
    except ChoiceError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    except HubError as problem:
        if not problem.unreachable:
            raise CliError(problem.message) from None
        again = "what has come is kept, and `onecard pull` goes on there"
        raise CliError(f"{problem.message}; {again}", ExitCode.UNREACHABLE) from None
    path = first.parent if chosen.label == "folder" else first
    name = _written(repository, chosen, path)
    if quiet:
        return path
    if as_json or json_lines:
        fits = None if plan is None else {"fits": plan.fits, "total_bytes": plan.total_bytes}
        sizes = {"size_bytes": chosen.size_bytes, "fetched_bytes": to_come}
        print_it = write_json_line if json_lines else write_json
        print_it({"reference": name, "path": str(path), **sizes, "fit": fits})
    else:
        say(f"{chosen.label}: {format_size(chosen.size_bytes)}" + ("" if to_come else ", was there already"))
        write(name)
        say(f"hint: onecard run {name}")
    return path


def fetch_missing(settings: Settings, config: Path | None) -> None:
    """Pull what a configuration names and the cache lacks; what cannot be had is told, and costs only its model."""
    for name, model in settings.models.items():
        try:
            locate(model.path)
        except LocateError:
            if parse_hub_reference(model.path) is None:
                continue
            try:
                pull(model.path, quant=None, config=config, quiet=True)
            except CliError as problem:
                say(f"warning: model '{name}' is not fetched: {problem.message}")


def _reference(text: str, quant: str | None) -> HubReference:
    if text in BUILT_IN:
        raise CliError(f"{text} is built in and needs no download. hint: onecard run {text}", ExitCode.USAGE)
    try:
        reference = parse_page(text) if is_page(text) else parse_hub_reference(text)
    except LocateError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    if reference is None:
        raise CliError(f"'{text[:200]}' is no repository. hint: {_ADDRESS}", ExitCode.USAGE)
    if quant is None or quant.lower() == _AUTO:
        return reference if quant is None else HubReference(reference.repo, None, reference.revision)
    if reference.quant not in (None, quant) or reference.file is not None:
        raise CliError(f"'{text[:200]}' names one file already. hint: leave --quant out", ExitCode.USAGE)
    return HubReference(reference.repo, quant, reference.revision)


def _chosen(repository: Repository, reference: HubReference, config: Path | None) -> tuple[Choice, Capacity | None]:
    """The files to fetch, and the plan that was shown of them. Raises CliError, ChoiceError or HubError."""
    ggufs = choices_of.ggufs(repository.files)
    if reference.file is not None and reference.file.lower().endswith(".gguf"):
        one = choices_of.with_name(ggufs, repository.name, reference.file)
    elif reference.quant is not None:
        one = choices_of.with_quant(ggufs, repository.name, reference.quant)
    elif ggufs:
        return _largest_that_fits(repository, ggufs, config)
    else:
        one = choices_of.folder(repository.files, repository.name)
    plan, table, _ = _plan(repository, one, config)
    _tell(one, plan, table)
    if not plan.fits:
        say(f"warning: {plan.reason or 'it does not fit'}")
    return one, plan


def _largest_that_fits(repository: Repository, ggufs: list[Choice], config: Path | None) -> tuple[Choice, Capacity]:
    """Wholly on the device, with the context that the configuration gives it. Raises CliError."""
    last: Capacity | None = None
    smallest: tuple[Choice, Capacity] | None = None
    looked = 0
    for one in ggufs:
        if looked >= _MOST_LOOKED_AT:
            break
        if last is not None and one is not ggufs[-1] and one.size_bytes > last.budget_bytes:
            continue
        looked += 1
        try:
            last, table, whole = _plan(repository, one, config)
        except CliError as problem:
            if one is ggufs[-1] and last is None:
                raise
            say(f"note: {problem.message}")
            continue
        if last.fits and whole:
            _tell(one, last, table)
            return one, last
        say(f"{one.label}: {format_size(one.size_bytes)} does not fit whole into {format_size(last.budget_bytes)}")
        smallest = one, last
    if smallest is not None and smallest[1].fits:
        _tell(*smallest, {})
        return smallest
    raise CliError(
        f"no quantisation of {repository.name} fits: {last.reason if last else 'there is none'}. "
        f"hint: --quant {ggufs[-1].label} fetches one all the same",
        ExitCode.DOES_NOT_FIT,
    )


def _plan(repository: Repository, one: Choice, config: Path | None) -> tuple[Capacity, dict[str, Any], bool]:
    """Its plan, from headers that are read out of the hub's files; the keys that its table wants for it; and whether
    all of it is where the device computes.
    """
    with tempfile.TemporaryDirectory(prefix="onecard-headers-") as folder:
        try:
            path = stand_in(repository, one, Path(folder))
            plan, whole = capacity_for(path, config, {})
            if not plan.fits and one.label == "folder":
                four_bits, whole = capacity_for(path, config, _FOUR_BITS)
                if four_bits.fits:
                    return four_bits, _FOUR_BITS, whole
        except HeaderError as problem:
            raise CliError(f"{repository.name}/{one.first} is not fetched: {problem}") from None
        except CliError as problem:
            raise CliError(problem.message.replace(f"{folder}/", ""), problem.code) from None
    return plan, {}, whole


def _tell(one: Choice, plan: Capacity, table: dict[str, Any]) -> None:
    verdict = "fits" if plan.fits else "does not fit"
    keys = "".join(f", with {key} = {value}" for key, value in table.items())
    of = f"{format_size(plan.total_bytes)} of {format_size(plan.budget_bytes)}"
    say(f"{one.label}: {format_size(one.size_bytes)} on disk; {verdict}{keys}: {of}, {plan_words(plan.plan)}")


def _written(repository: Repository, one: Choice, path: Path) -> str:
    """The shortest reference that means this very model, else its path."""
    revision = "" if repository.revision == "main" else f"@{repository.revision}"
    for text in (f"hf:{repository.name}:{one.label}{revision}", f"hf:{repository.name}{revision}"):
        try:
            if locate(text).path == path:
                return text
        except LocateError:
            continue
    return str(path)
