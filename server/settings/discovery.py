"""Models that other programs have on this machine: Ollama's store, LM Studio's folders, any folder of files.

They are served from where they lie, never copied. What is half there costs only itself, and is told.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.files import model_files
from server.settings.references import is_projector, split_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from server.settings.config import Settings

_MANIFEST_BYTES: Final = 2**20
_MOST: Final = 5000
_DEPTH: Final = 4
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})", re.ASCII)
_LAYER: Final = "application/vnd.ollama.image."
_SAMPLING: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
"""Ollama's parameters and what they are called here."""
_LM_STUDIO: Final = ("~/.lmstudio/models", "~/.cache/lm-studio/models")


@dataclass(frozen=True)
class Discovered:
    """A model that lies on this machine and that no configuration names."""

    name: str
    path: Path
    source: str
    table: dict[str, Any] = field(default_factory=dict)
    """Keys of a model's table that its store asks for."""
    remarks: tuple[str, ...] = ()


@dataclass
class Discovery:
    """What a search has found, and what it could not use."""

    models: list[Discovered] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What is to be said of all that was found."""
        return [*self.problems, *(remark for model in self.models for remark in model.remarks)]


def usual_places() -> list[str]:
    """Where Ollama and LM Studio keep models, as far as they are there."""
    places = [os.environ.get("OLLAMA_MODELS") or "~/.ollama/models", *_LM_STUDIO]
    return [place for place in places if Path(place).expanduser().is_dir()]


def discover(places: list[str]) -> Discovery:
    """Every model below these folders. Blocks on the disk."""
    found = Discovery()
    for place in places:
        folder = Path(place).expanduser()
        try:
            if not folder.is_dir():
                found.problems.append(f"{place} is no folder")
            elif (folder / "manifests").is_dir() and (folder / "blobs").is_dir():
                _ollama(folder, found)
            else:
                _files(folder, found)
        except OSError as error:
            found.problems.append(f"{place} cannot be read: {model_files.reason(error)}")
    return found


def with_discovered(settings: Settings, found: Discovery) -> Settings:
    """The settings with these models added; a name that is configured stays the configuration's."""
    taken = {alias for name, model in settings.models.items() for alias in (name, *model.aliases)}
    tables = {}
    for model in found.models:
        if model.name not in taken:
            taken.add(model.name)
            tables[model.name] = {**model.table, "path": str(model.path)}
    if not tables:
        return settings
    added = type(settings).model_validate(
        {"defaults": settings.defaults, "scheduler": settings.scheduler, "models": tables}
    )
    return settings.model_copy(update={"models": {**settings.models, **added.models}})


def _files(folder: Path, found: Discovery) -> None:
    """GGUF files and model folders, a few levels deep."""
    for path in _below(folder, _DEPTH):
        name = str(path.relative_to(folder))
        if not name.isprintable() or len(name) > 190:
            found.problems.append(f"{model_files.shown(name)} is left out: its name cannot be a model's")
        elif path.name == "config.json":
            inside = path.parent
            if any(inside.glob("*.safetensors")):
                found.models.append(Discovered(str(inside.relative_to(folder.parent)), inside, str(folder)))
        elif path.suffix.lower() == ".gguf" and not is_projector(path.name):
            split = split_names(path.name)
            if split is None or (split[0] == 1 and all(path.with_name(part).is_file() for part in split[1])):
                found.models.append(Discovered(name[: -len(".gguf")], path, str(folder)))
            elif split[0] == 1:
                found.problems.append(f"{model_files.shown(name)} is left out: not all of its parts are there")


def _below(folder: Path, depth: int) -> Iterator[Path]:
    left = _MOST
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(root).relative_to(folder).parts) >= depth:
            folders.clear()
        for name in sorted(names):
            left -= 1
            if left < 0:
                return
            yield Path(root) / name


def _ollama(store: Path, found: Discovery) -> None:
    """A model for each manifest; its weights are a blob that the manifest names."""
    for path in _below(store / "manifests", _DEPTH):
        parts = path.relative_to(store / "manifests").parts
        if len(parts) != _DEPTH or path.name.startswith("."):
            continue
        owner = "" if parts[1] == "library" else f"{parts[1]}/"
        name = f"{owner}{parts[2]}:{parts[3]}"
        if not name.isprintable():
            continue
        try:
            found.models.append(_of_manifest(store, path, name))
        except (model_files.FileError, _StoreError) as problem:
            found.problems.append(f"Ollama's {model_files.shown(name)} is left out: {problem}")


class _StoreError(Exception):
    """A model of Ollama's that is not whole; the text is a clause."""


def _of_manifest(store: Path, manifest: Path, name: str) -> Discovered:
    """Raises FileError or _StoreError."""
    from server.settings.values import MAX_SYSTEM_CHARS

    layers = model_files.read_object(manifest, _MANIFEST_BYTES).get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise _StoreError("its manifest has no layers. hint: pull it again")
    by_kind = {str(layer.get("mediaType")).removeprefix(_LAYER): layer for layer in layers}
    if "model" not in by_kind:
        raise _StoreError("its manifest names no model. hint: pull it again")
    path = _blob(store, by_kind["model"], whole=True)
    table: dict[str, Any] = {}
    remarks: list[str] = []
    if "params" in by_kind:
        table = _table(model_files.read_object(_blob(store, by_kind["params"]), _MANIFEST_BYTES))
    if "system" in by_kind:
        table["system"] = model_files.read_text(_blob(store, by_kind["system"]), MAX_SYSTEM_CHARS)
    if "template" in by_kind:
        remarks.append("the chat template of its GGUF file is used, not Ollama's")
    if "projector" in by_kind:
        table["projector"] = str(_blob(store, by_kind["projector"], whole=True))
    remarks += ["its adapter is not used"] if "adapter" in by_kind else []
    return Discovered(name, path, "Ollama", table, tuple(f"{name}: {text}" for text in remarks))


def _blob(store: Path, layer: Mapping[str, Any], *, whole: bool = False) -> Path:
    match = _DIGEST.fullmatch(str(layer.get("digest")))
    if match is None:
        raise _StoreError("its manifest names a blob that none can be")
    path, size = store / "blobs" / f"sha256-{match[1]}", layer.get("size")
    if not path.is_file():
        half = ", only a part of it" if any(path.parent.glob(f"{path.name}-partial*")) else ""
        raise _StoreError(f"the blob {path.name[:19]} is not there{half}. hint: `ollama pull` fetches it")
    if whole and path.stat().st_size != size:
        raise _StoreError(f"the blob {path.name[:19]} has {path.stat().st_size} of {size} bytes. hint: pull it again")
    return path


def _table(params: Mapping[str, Any]) -> dict[str, Any]:
    """What of a Modelfile's parameters has a key here."""
    from pydantic import ValidationError

    from server.settings.sampling_table import SamplingTable

    sampling = {ours: params[theirs] for theirs, ours in _SAMPLING.items() if theirs in params}
    table: dict[str, Any] = {}
    try:
        SamplingTable.model_validate(sampling)
    except ValidationError:
        sampling = {}
    if sampling:
        table["sampling"] = sampling
    context = params.get("num_ctx")
    if isinstance(context, int) and not isinstance(context, bool) and 8 <= context < 2**31:
        table["context"] = context
    return table
