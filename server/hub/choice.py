"""What of a repository's files is a model, and which files each of its quantisations is made of. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from backends.files import model_files
from server.settings.references import has_quant, is_projector, quant_of, split_names

if TYPE_CHECKING:
    from collections.abc import Iterable

_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_DENSE: Final = re.compile(r"\d+_\w+/(config\.json|model\.safetensors)", re.ASCII)
_READ: Final = (".json", ".jinja", ".model", ".txt", ".spm", ".tiktoken")
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")
_NO_MODELS: Final = ("imatrix", "ggml-vocab")
_MOST_NAME_CHARS: Final = 1024
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
_NO_MODEL_WORDS: Final = re.compile(r"(?:^|[-_. ])(?:i?q\d\w*|b?f16|f32|mmproj|model|ud|i1)(?=[-_. ]|$)")
_PRECISIONS: Final = ("f16", "bf16", "q8_0", "f32")


class ChoiceError(Exception):
    """A repository without what was asked for; the text is a sentence."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the hub describes it."""

    name: str
    size: int
    sha256: str | None
    """Of the content; None for a small file, which has `blob_id`."""
    blob_id: str
    """Git's name of the content."""

    @property
    def etag(self) -> str:
        """The name of its content in the cache."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Choice:
    """One model: a GGUF file with all its parts, or a folder."""

    label: str
    """Its quantisation, else its name; `folder` for a folder."""
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size for file in self.files)

    @property
    def first(self) -> str:
        """The name of the file that names the model: of a split one the first part."""
        return self.files[0].name


def is_plain_name(name: str) -> bool:
    """Whether a name from a stranger stays within its folder, and can be shown."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and len(name) <= _MOST_NAME_CHARS and name.isprintable() and "\\" not in name
    return plain and not name.startswith(("/", "~")) and all(part not in (".", "..") for part in name.split("/"))


def ggufs(files: Iterable[RemoteFile]) -> list[Choice]:
    """Every GGUF model of a repository, the largest first; split ones only when all parts are there."""
    by_name = {file.name: file for file in files}
    found = []
    for name, file in by_name.items():
        eyes = projector_of(name, by_name.values())
        base = PurePosixPath(name).name
        if not name.lower().endswith(".gguf") or is_projector(base) or base.lower().startswith(_NO_MODELS):
            continue
        split = split_names(name)
        if split is None:
            found.append(Choice(quant_of(name) or base, (file, *eyes)))
        elif split[0] == 1 and all(part in by_name for part in split[1]):
            found.append(Choice(quant_of(name) or base, (*(by_name[part] for part in split[1]), *eyes)))
    return sorted(found, key=lambda choice: (-choice.size_bytes, choice.first))


def projector_of(model: str, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The projector that belongs to a GGUF model of a repository, in 16 bits where there are several; empty for none.

    It lies in the model's folder, and is named for the model or for none.
    """
    folder, words = PurePosixPath(model).parent, _model_words(model)
    fitting = [
        file
        for file in files
        if file.name.lower().endswith(".gguf")
        and is_projector(PurePosixPath(file.name).name)
        and PurePosixPath(file.name).parent == folder
        and (not (own := _model_words(file.name)) or words == own or words.startswith(f"{own}-"))
    ]
    fitting.sort(key=lambda file: (not _model_words(file.name), _precision(file.name), file.name))
    return tuple(fitting[:1])


def _model_words(name: str) -> str:
    """A file's name without its part, its precision and the words for a projector."""
    stem = _PART.sub("", PurePosixPath(name).stem.lower())
    return re.sub(r"[-_. ]+", "-", _NO_MODEL_WORDS.sub("", stem)).strip("-")


def _precision(name: str) -> int:
    words = re.split(r"[-_. ]", PurePosixPath(name).stem.lower())
    return next((place for place, word in enumerate(_PRECISIONS) if word in words), len(_PRECISIONS))


def with_quant(choices: list[Choice], repo: str, quant: str) -> Choice:
    """The one of a quantisation. Raises ChoiceError that names those that are there."""
    found = [choice for choice in choices if has_quant(choice.first, quant)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(choice.first for choice in found[:8])
        raise ChoiceError(f"{repo} has several files of {quant}: {names}. hint: give the page's URL of one of them")
    raise ChoiceError(f"{repo} has no {quant}. hint: {labels(choices)}")


def with_name(choices: list[Choice], repo: str, name: str) -> Choice:
    """The one that a file belongs to, any part of it. Raises ChoiceError."""
    found = [choice for choice in choices if any(file.name == name for file in choice.files)]
    if found:
        return found[0]
    raise ChoiceError(f"{repo} has no model file {model_files.shown(name)}. hint: {labels(choices)}")


def labels(choices: list[Choice]) -> str:
    """Those there are, as a hint names them."""
    named = list(dict.fromkeys(choice.label for choice in choices))
    return f"it has {', '.join(named[:24])}" if named else "it has no GGUF file"


def folder(files: Iterable[RemoteFile], repo: str) -> Choice:
    """The files of a model folder that onecard reads. Raises ChoiceError for repositories that are none."""
    by_name = {file.name: file for file in files}
    if "config.json" not in by_name:
        raise ChoiceError(f"{repo} {_what_else(by_name)}")
    weights = [name for name in by_name if _WEIGHTS.fullmatch(name)]
    weights = weights or [name for name in by_name if "/" not in name and name.endswith(".safetensors")]
    if not weights:
        pickled = any(name.endswith(_PICKLED) for name in by_name)
        what = "holds pickled weights only, which can run code when they are read" if pickled else "holds no weights"
        raise ChoiceError(
            f"{repo} {what}. hint: look for its safetensors or GGUF files: `onecard search {_words(repo)}`"
        )
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    beside = [name for name in by_name if ("/" not in name and name.endswith(_READ)) or _DENSE.fullmatch(name)]
    return Choice(
        "folder", tuple(by_name[name] for name in ["config.json", *sorted({*weights, *beside} - {"config.json"})])
    )


def remarks(files: Iterable[RemoteFile]) -> list[str]:
    """What is there beside the model that is not fetched and that a user may be missing."""
    told = []
    names = [file.name for file in files]
    if "adapter_config.json" in names:
        told.append("a LoRA adapter is there too (adapter_config.json) and is not fetched")
    if any(name.endswith(".py") for name in names):
        told.append("code is there too (*.py) and is not fetched; onecard runs the model without it")
    return told


def _what_else(by_name: dict[str, RemoteFile]) -> str:
    if "adapter_config.json" in by_name:
        return (
            "is a LoRA adapter, which changes another model. hint: `hf download` fetches it, and adapters in the "
            "table of that model serves it"
        )
    if "model_index.json" in by_name:
        return (
            "is a pipeline of diffusers, which makes images. hint: `hf download` fetches it, and its folder is served "
            "as `path` of a model"
        )
    if any(is_projector(PurePosixPath(name).name) for name in by_name):
        return "holds image projectors only. hint: pull the model they belong to"
    return "is no model that onecard serves: it has neither a GGUF file nor config.json with safetensors"


def _words(repo: str) -> str:
    return repo.rpartition("/")[2].replace("-", " ").replace("_", " ")
