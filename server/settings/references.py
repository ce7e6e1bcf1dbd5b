"""From what an operator wrote as a model's path to the files it means.

Reads the local file system and the local Hugging Face cache; never the network, and never with a client's string.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from backends.backend import HeaderError
from backends.files import foreign, model_files
from backends.files.adapters import PEFT_CONFIG
from backends.gguf.parts import HUB_TAG as HUB_TAG
from backends.gguf.parts import PART
from backends.registry import recognised
from server.settings.builtin import BUILT_IN, built_in_path, why_missing

_REF_BYTES = 4096
_MOST_PARTS: Final = 999
_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_BARE_HOSTS: Final = tuple(f"{host}/" for host in _HOSTS)
_REVISION: Final = re.compile(r"[\w./-]+", re.ASCII)
_PART_NUMBER: Final = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
_QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|T?Q\d_\d|BF16|FP?16|F32|MXFP4(?:_\w+)?))(?:-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_REPO = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?::(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class LocateError(Exception):
    """The files are not there or not what they should be; the text is a sentence without the model's name."""


@dataclass(frozen=True)
class Located:
    """The files of one model."""

    path: Path
    """The `.gguf` (first part of a split one) or the folder."""
    backend: str
    size_bytes: int


@dataclass(frozen=True)
class HubReference:
    """`hf:org/repo:QUANT@revision`."""

    repo: str
    quant: str | None
    revision: str
    file: str | None = None
    """A file's name in the repository, where a page's address names one."""

    def __str__(self) -> str:
        """As it is written."""
        short = self.repo + (f":{self.quant}" if self.quant else "")
        return short + (f"@{self.revision}" if self.revision != "main" else "")


def parse_hub_reference(text: str) -> HubReference | None:
    """A reference to a Hugging Face repository, or the address of its page; None when the text is rather a path."""
    if is_page(text):
        try:
            return parse_page(text)
        except LocateError:
            return None
    explicit = text.startswith("hf:")
    match = _REPO.fullmatch(text.removeprefix("hf:"))
    if match is None or (not explicit and (text.lower().endswith(".gguf") or text.startswith((".", "~", "/")))):
        return None
    return HubReference(repo=match["repo"], quant=match["quant"], revision=match["revision"] or "main")


def is_page(text: str) -> bool:
    """Whether it is written as an address of the web."""
    return "://" in text or text.lower().startswith(_BARE_HOSTS)


def parse_page(text: str) -> HubReference:
    """A page of a repository or of one of its files, as browsers show and people paste it. Raises LocateError."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, steps = (parts.netloc.rpartition("@")[2]).lower(), [unquote(s) for s in parts.path.split("/") if s]
    except ValueError:
        raise LocateError(f"{text[:200]} is no address") from None
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    if parts.scheme not in ("http", "https") or host not in (*_HOSTS, *([mirror] if mirror else [])):
        raise LocateError(
            f"models come from huggingface.co, not from {host or text[:200]}. hint: `onecard search WORDS` finds them; "
            "HF_ENDPOINT names a mirror"
        )
    if steps and steps[0] in ("datasets", "spaces", "collections", "papers", "models", "docs"):
        raise LocateError(f"{text[:200]} is no model's page. hint: https://huggingface.co/owner/name is one")
    match = _REPO.fullmatch("/".join(steps[:2]))
    if len(steps) < 2 or match is None or ".." in steps:
        raise LocateError(f"{text[:200]} names no repository. hint: https://huggingface.co/owner/name does")
    revision, file = match["revision"] or "main", None
    if len(steps) > 3 and steps[2] in ("tree", "blob", "resolve", "raw"):
        revision = steps[3]
        file = "/".join(steps[4:]) if steps[2] != "tree" and len(steps) > 4 else None
    if file is None and (shown := parse_qs(parts.query).get("show_file_info")):
        file = shown[0]
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise LocateError(f"{text[:200]} names no revision that can be")
    return HubReference(match["repo"], match["quant"], revision, file)


def absolute(text: str, base: Path) -> str:
    """A path made absolute against the folder it was written in; references and built-in names stay as they are."""
    if is_page(text):
        return text
    path = base / Path(text).expanduser()
    if text in BUILT_IN or text.startswith("hf:") or (parse_hub_reference(text) and not path.exists()):
        return text
    return str(Path(os.path.abspath(path)))  # noqa: PTH100 - resolve() would follow the cache's links


def locate(text: str) -> Located:
    """The files behind a path or reference. Raises LocateError."""
    try:
        return _located(text)
    except (model_files.FileError, HeaderError) as error:
        raise LocateError(str(error)) from None
    except OSError as error:
        raise LocateError(f"{text[:200]} cannot be looked at: {model_files.reason(error)}") from None


def _located(text: str) -> Located:
    if text in BUILT_IN:
        return _built_in(text)
    path = Path(text).expanduser()
    if not text.startswith("hf:") and not is_page(text) and path.exists():
        return _at(path)
    if reference := parse_hub_reference(text):
        return _in_cache(reference)
    if is_page(text):
        parse_page(text)  # raises
    if text.startswith("hf:"):
        raise LocateError(f"'{text}' is no reference. hint: write hf:org/repo:Q4_K_M")
    if (strange := model_files.why_not_file(path)) is not None:
        raise LocateError(f"{path} {strange}")
    raise LocateError(f"there is no file or folder {path}")


def adapter_place(text: str) -> str:
    """Where an adapter lies: a reference becomes its folder, or its one file, in the local cache where it is."""
    path = Path(text).expanduser()
    reference = None if model_files.is_there(path) else parse_hub_reference(text)
    if reference is None:
        return text if text.startswith("hf:") else str(path)
    try:
        folder = snapshot(reference)
    except (model_files.FileError, OSError):
        folder = None
    if folder is None:
        return f"hf:{reference.repo}"
    if (folder / PEFT_CONFIG).exists():
        return str(folder)
    found = sorted(folder.glob("*.gguf")) or sorted(folder.glob("*.safetensors"))
    return str(found[0] if len(found) == 1 else folder)


def hub_cache() -> Path:
    """The local Hugging Face cache, found as `huggingface_hub` finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_home).expanduser() / "huggingface" / "hub"


def _built_in(name: str) -> Located:
    if (path := built_in_path(name)) is None:
        raise LocateError(why_missing(name))
    return _at(path)


def _at(path: Path) -> Located:
    if (found := recognised(path)) is not None:
        backend, files = found
        return Located(path, backend.name, files.size_bytes)
    if path.is_dir():
        raise LocateError(f"{path} is a folder without config.json{_other_folder(path)}")
    # The hub's cache is made of links, so the target decides: a device or a pipe would block or never end.
    if (strange := model_files.why_not_file(path)) is not None:
        raise LocateError(f"{path} {strange}. hint: name a GGUF file or a folder that holds config.json")
    raise _other_file(path)


def _other_file(path: Path) -> LocateError:
    """What a file is that no backend serves."""
    if foreign.is_unfinished(path.name):
        return LocateError(
            f"{path} is a download that is not finished, by its name. hint: let the download end, or rename the file"
        )
    try:
        with model_files.opened(path) as file:
            start, size = file.at(0, foreign.PROBE_BYTES), file.size
    except model_files.FileError as error:
        return LocateError(f"{path}: {error}")
    what = foreign.told(start, size)
    if (path.parent / "config.json").is_file() and "folder" in what:
        what = f"{what.partition('. hint:')[0]}. hint: name its folder, {path.parent}"
    return LocateError(f"{path} is no .gguf file: {what}")


def _other_folder(path: Path) -> str:
    """What a folder is that holds no config.json, and what to do."""
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if ggufs:
        return f". hint: name the file: {', '.join(ggufs[:4])}"
    if (path / PEFT_CONFIG).exists():
        return ", a LoRA adapter, which changes another model. hint: name it in [models.NAME.adapters] of that model"
    if (path / "model_index.json").exists():
        return ", and its model_index.json is no plain file. hint: was the folder downloaded completely?"
    if (path / "params.json").exists():
        return ", in the format of the model's own makers. hint: take the model's folder for transformers"
    if found := next((file for file in sorted(path.iterdir()) if foreign.is_unfinished(file.name)), None):
        return f", and {found.name} is a download that is not finished. hint: let it end"
    inside = sorted(file.parent.name for file in path.glob("*/config.json"))
    hint = f"name the folder inside: {', '.join(inside[:4])}" if inside else "a model folder holds config.json"
    return f". hint: {hint}"


def snapshot(reference: HubReference) -> Path | None:
    """The folder of one revision of a repository in the local cache; None when it is not there."""
    repo = hub_cache() / f"models--{reference.repo.replace('/', '--')}"
    ref = repo / "refs" / reference.revision
    commit = (
        model_files.read_text(ref, _REF_BYTES).strip()
        if ".." not in reference.revision and ref.is_file()
        else reference.revision
    )
    folder = repo / "snapshots" / commit
    return folder if ".." not in commit and folder.is_dir() else None


def _in_cache(reference: HubReference) -> Located:
    folder = snapshot(reference)
    if folder is None:
        raise LocateError(f"{reference.repo} is not in the cache at {hub_cache()}. {_how_to_get(reference)}")
    if reference.file is not None:
        return _file_in_cache(reference, folder, reference.file)
    ggufs = first_parts(folder)
    if reference.quant is None:
        return _without_quant(reference, folder, ggufs)
    found = [file for file in ggufs if has_quant(file.name, reference.quant)]
    if not found:
        names = ", ".join(file.name for file in ggufs[:6]) or "no GGUF file"
        raise LocateError(
            f"{reference.repo} has no {reference.quant} in the cache (there is {names}). {_how_to_get(reference)}"
        )
    if len(found) > 1:
        raise LocateError(
            f"{reference.repo}:{reference.quant} is several files: {', '.join(file.name for file in found)}. "
            "hint: give the path of one"
        )
    return _at(found[0])


def _file_in_cache(reference: HubReference, folder: Path, name: str) -> Located:
    path = folder / name
    if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
        hint = f"hint: `onecard pull` with the same address fetches it into {hub_cache()}"
        raise LocateError(f"{reference.repo} has no {name[:200]} in the cache. {hint}")
    return _at(folder if path.name == "config.json" else path)


def _without_quant(reference: HubReference, folder: Path, ggufs: list[Path]) -> Located:
    if not ggufs:
        return _at(folder)
    if len(ggufs) > 1:
        names = ", ".join(file.name for file in ggufs[:6])
        raise LocateError(f"{reference.repo} holds {names}. hint: write hf:{reference.repo}:Q4_K_M for one of them")
    return _at(ggufs[0])


def first_parts(folder: Path) -> list[Path]:
    """Every GGUF model under a folder: single files and first parts, without image projectors."""
    files = sorted(file for file in folder.rglob("*.gguf") if not is_projector(file.name))
    return [file for file in files if (match := PART.fullmatch(file.name)) is None or int(match["number"]) == 1]


def split_names(name: str) -> tuple[int, list[str]] | None:
    """Of a part of a split GGUF file: its number, and the names of all parts; None for a file that is whole."""
    match = PART.fullmatch(name)
    if match is None:
        return None
    count = min(int(match["count"]), _MOST_PARTS)
    names = [f"{match['stem']}-{n:05}-of-{match['count']}{name[-5:]}" for n in range(1, count + 1)]
    return int(match["number"]), names


def is_projector(name: str) -> bool:
    """An image projector beside a model, by its name."""
    return name.lower().startswith("mmproj") or "mmproj" in name.lower().split(".")[0].split("-")


def has_quant(name: str, quant: str) -> bool:
    """Whether a GGUF file is of a quantisation, by its name."""
    wanted = re.compile(rf"(^|[-._]){re.escape(quant)}($|[-._])", re.IGNORECASE)
    return wanted.search(_PART_NUMBER.sub("", Path(name).stem)) is not None


def quant_of(name: str) -> str | None:
    """The quantisation that a GGUF file's name tells."""
    found = _QUANT.search(name)
    return found[1] if found else None


def _how_to_get(reference: HubReference) -> str:
    return f"hint: `onecard pull {reference}` fetches it"
