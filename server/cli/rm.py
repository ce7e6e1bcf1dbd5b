"""`onecard rm`: a model out of the Hugging Face cache, through the library's own way of deleting; nothing else."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.cli.client import client_for
from server.cli.configuration import loaded_or_exit
from server.cli.console import CliError, ExitCode, say, write
from server.cli.flags import name_for
from server.cli.listing import homely
from server.settings.builtin import BUILT_IN
from server.settings.references import LocateError, hub_cache, locate, split_names
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRevisionInfo, DeleteCacheStrategy, HFCacheInfo

    from server.settings.config import Settings

_PROC: Final = Path("/proc")


def remove(model: str, *, yes: bool, config: Path | None) -> None:
    """Delete a model's files after a question. Raises CliError."""
    settings = loaded_or_exit(config).settings
    configured = settings.models.get(model)
    path = _path_of(configured.path if configured is not None else model)
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(hub_cache())
    found = [(repo, r) for repo in cache.repos for r in repo.revisions if path.is_relative_to(r.snapshot_path)]
    if not found:
        raise CliError(f"{homely(path)} lies in no revision of the cache at {hub_cache()}, and is left alone")
    repo, revision = found[0]
    # Copies of a repository share their commits, so the library is shown no other one.
    strategy, files = _strategy(dataclasses.replace(cache, repos=frozenset({repo})), revision, path)
    _refuse_in_use(model, path, {file.blob_path for file in files}, settings)
    told = ", ".join(sorted(file.file_name for file in files)[:6]) + (", ..." if len(files) > 6 else "")
    say(f"{model}: {told}: {format_size(strategy.expected_freed_size)} of {homely(hub_cache())}")
    if not yes and not _agreed():
        raise CliError("nothing was removed. hint: --yes removes without a question")
    strategy.execute()
    write(f"removed {model}: {format_size(strategy.expected_freed_size)}")


def _path_of(text: str) -> Path:
    """Where it lies in the cache. Raises CliError for what lies elsewhere."""
    if text in BUILT_IN:
        raise CliError(f"{text} is built in, and stays", ExitCode.USAGE)
    try:
        path = locate(text).path
    except LocateError as problem:
        raise CliError(str(problem), ExitCode.USAGE) from None
    if not path.absolute().is_relative_to(hub_cache().absolute()) or ".." in path.parts:
        raise CliError(
            f"{homely(path)} lies outside the cache at {homely(hub_cache())}, and onecard removes nothing there. "
            f"hint: rm {homely(path)}",
            ExitCode.USAGE,
        )
    return path


def _strategy(
    cache: HFCacheInfo, revision: CachedRevisionInfo, path: Path
) -> tuple[DeleteCacheStrategy, list[CachedFileInfo]]:
    """The whole revision, or of one with other models the model's own files."""
    split = split_names(path.name)
    own = {path} if split is None else {path.with_name(name) for name in split[1]}
    mine = [file for file in revision.files if file.file_path in own]
    others = [
        file for file in revision.files if file not in mine and file.file_name.endswith((".gguf", ".safetensors"))
    ]
    if path == revision.snapshot_path or not mine or not others:
        return cache.delete_revisions(revision.commit_hash), list(revision.files)
    return cache.delete_files(*mine), mine


def _refuse_in_use(model: str, path: Path, blobs: set[Path], settings: Settings) -> None:
    """A model that a server has loaded stays. Raises CliError."""
    try:
        client = client_for(os.environ.get("ONECARD_URL"), settings)
        loaded = {m["name"] for m in client.get("/v1/status")["models"] if m["state"] not in ("unloaded", "failed")}
    except (CliError, KeyError, TypeError):
        loaded = set()
    names = {model, name_for(model)} | {name for name, other in settings.models.items() if _is_at(other.path, path)}
    if held := names & loaded:
        raise CliError(f"a running server has {min(held)} loaded. hint: onecard unload {min(held)}")
    if (pid := _mapped_by(blobs)) is not None:
        raise CliError(f"process {pid} has the files of {model} open. hint: end it, or `onecard unload` the model")


def _is_at(text: str, path: Path) -> bool:
    try:
        return locate(text).path == path
    except LocateError:
        return False


def _mapped_by(blobs: set[Path]) -> int | None:
    """A process that has one of the files in its memory, as far as this user may see."""
    names = {str(blob.resolve()) for blob in blobs}
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            lines = (folder / "maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        if any(line[line.find("/") :] in names for line in lines if "/" in line):
            return int(folder.name)
    return None


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    say("remove? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
