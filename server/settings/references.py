"""From what an operator wrote as a model's path to the files it means.

Reads the local file system and the local Hugging Face cache; never the network, and never with a client's string.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from backends.backend import HeaderError
from backends.files import foreign, model_files
from backends.gguf.parts import PART
from backends.registry import recognised

DEMO = "demo"
_REF_BYTES = 4096
_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


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


def parse_hub_reference(text: str) -> HubReference | None:
    """A reference to a Hugging Face repository; None when the text is rather a path."""
    explicit = text.startswith("hf:")
    match = _REPO.fullmatch(text.removeprefix("hf:"))
    if match is None or (not explicit and (text.lower().endswith(".gguf") or text.startswith((".", "~", "/")))):
        return None
    return HubReference(repo=match["repo"], quant=match["quant"], revision=match["revision"] or "main")


def absolute(text: str, base: Path) -> str:
    """A path made absolute against the folder it was written in; references and `demo` stay as they are."""
    path = base / Path(text).expanduser()
    if text == DEMO or text.startswith("hf:") or (parse_hub_reference(text) and not path.exists()):
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
    if text == DEMO:
        return _demo()
    path = Path(text).expanduser()
    if not text.startswith("hf:") and path.exists():
        return _at(path)
    if reference := parse_hub_reference(text):
        return _in_cache(reference)
    if text.startswith("hf:"):
        raise LocateError(f"'{text}' is no reference. hint: write hf:org/repo:Q4_K_M")
    if (strange := model_files.why_not_file(path)) is not None:
        raise LocateError(f"{path} {strange}")
    raise LocateError(f"there is no file or folder {path}")


def hub_cache() -> Path:
    """The local Hugging Face cache, found as `huggingface_hub` finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_home).expanduser() / "huggingface" / "hub"


def _demo() -> Located:
    from demo import GGUF_PATH  # here, so that other models need none of the demo's files

    if not Path(GGUF_PATH).is_file():
        raise LocateError(f"the built-in demo model is missing at {GGUF_PATH}. hint: reinstall onecard")
    return _at(Path(GGUF_PATH))


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
    if (path / "adapter_config.json").exists():
        return ", a LoRA adapter, which changes another model. hint: merge it, and name the merged model's folder"
    if (path / "model_index.json").exists():
        return ", a pipeline that makes pictures. hint: onecard serves models of text"
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
    ggufs = first_parts(folder)
    if reference.quant is None:
        return _without_quant(reference, folder, ggufs)
    wanted = re.compile(rf"(^|[-._]){re.escape(reference.quant)}($|[-._])", re.IGNORECASE)
    found = [file for file in ggufs if wanted.search(re.sub(r"-\d{5}-of-\d{5}$", "", file.stem))]
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


def _without_quant(reference: HubReference, folder: Path, ggufs: list[Path]) -> Located:
    if not ggufs:
        return _at(folder)
    if len(ggufs) > 1:
        names = ", ".join(file.name for file in ggufs[:6])
        raise LocateError(f"{reference.repo} holds {names}. hint: write hf:{reference.repo}:Q4_K_M for one of them")
    return _at(ggufs[0])


def first_parts(folder: Path) -> list[Path]:
    """Every GGUF model under a folder: single files and first parts, without image projectors."""
    files = sorted(file for file in folder.rglob("*.gguf") if not file.name.lower().startswith("mmproj"))
    return [file for file in files if (match := PART.fullmatch(file.name)) is None or int(match["number"]) == 1]


def _how_to_get(reference: HubReference) -> str:
    include = f' --include "*{reference.quant}*.gguf"' if reference.quant else ""
    return f"hint: `hf download {reference.repo}{include}` puts it there"
