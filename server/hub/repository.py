"""Asks the hub, through `huggingface_hub`, what it has; every failure is one sentence with what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from backends.files.model_files import shown
from server.hub.choice import RemoteFile, is_plain_name
from server.settings.references import HUB_TAG

if TYPE_CHECKING:
    from collections.abc import Generator

    from server.settings.references import HubReference

_ANSWER_S: Final = 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_ETAG: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_MOST_FILES: Final = 20_000
_MOST_BYTES: Final = 2**50


class HubError(Exception):
    """The hub did not give what was asked for; the text is a sentence."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.unreachable = unreachable


@dataclass(frozen=True)
class Repository:
    """One revision of a repository."""

    name: str
    revision: str
    """As it was asked for, such as `main`."""
    commit: str
    files: tuple[RemoteFile, ...]


def look_up(reference: HubReference) -> Repository:
    """What a repository holds. Raises HubError."""
    from huggingface_hub import HfApi

    with speaking_of(reference.repo, reference.revision):
        info = HfApi().model_info(reference.repo, revision=reference.revision, files_metadata=True, timeout=_ANSWER_S)
    commit = info.sha or ""
    if _COMMIT.fullmatch(commit) is None:
        raise HubError(f"{host()} names no commit of {reference.repo}. hint: is it a hub? HF_ENDPOINT names it")
    siblings = info.siblings or []
    if len(siblings) > _MOST_FILES:
        raise HubError(f"{reference.repo} has {len(siblings)} files, more than a model has")
    return Repository(
        reference.repo, reference.revision, commit, tuple(_file(reference.repo, item) for item in siblings)
    )


def _file(repo: str, item: Any) -> RemoteFile:
    name, size = item.rfilename, item.size
    if not isinstance(name, str) or not is_plain_name(name):
        raise HubError(f"{repo} has a file with a name that leads elsewhere: {shown(str(name))}. hint: do not use it")
    sha256 = item.lfs.sha256 if item.lfs is not None else None
    etag = sha256 or item.blob_id or ""
    if not isinstance(size, int) or not 0 <= size <= _MOST_BYTES or _ETAG.fullmatch(etag) is None:
        raise HubError(f"{host()} does not say how large {shown(name)} is and what its checksum is")
    return RemoteFile(name, size, sha256, item.blob_id or "")


@dataclass(frozen=True)
class Found:
    """A repository that a search has found."""

    name: str
    downloads: int
    gguf: bool
    gated: bool


def search(words: str, limit: int) -> list[Found]:
    """Repositories with these words, those with GGUF files first. Raises HubError."""
    from huggingface_hub import HfApi

    found: dict[str, Found] = {}
    with speaking_of(words, "main"):
        for only_gguf in (True, False):
            given: dict[str, Any] = {"filter": HUB_TAG} if only_gguf else {"pipeline_tag": "text-generation"}
            for item in HfApi().list_models(search=words, sort="downloads", limit=limit, **given):
                if is_plain_name(item.id) and item.id not in found:
                    gguf = only_gguf or HUB_TAG in (item.tags or [])
                    found[item.id] = Found(item.id, item.downloads or 0, gguf, bool(item.gated))
    return sorted(found.values(), key=lambda one: not one.gguf)[:limit]


def host() -> str:
    """The hub's address without the scheme, as messages name it."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or str(constants.ENDPOINT)


@contextlib.contextmanager
def speaking_of(repo: str, revision: str) -> Generator[None, None, None]:
    """Whatever the library raises becomes a HubError about this repository."""
    import httpx2
    from huggingface_hub import errors

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what it warns of is told here
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{repo} is gated: its owner wants its terms accepted. "
            f"hint: accept them at https://{host()}/{repo}, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{repo} has no revision {shown(revision)}. hint: leave @{shown(revision)} out") from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{host()} has no repository {repo}, or it is private. hint: `onecard search {repo.rpartition('/')[2]}` "
            "looks for it; a private one needs HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        told = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        raise HubError(
            f"{told} is set, so {host()} is not asked. hint: unset it, or take a model of `onecard list`",
            unreachable=True,
        ) from None
    except errors.HFValidationError:
        raise HubError(f"{shown(repo)} is no repository's name. hint: write owner/name") from None
    except errors.HfHubHTTPError as problem:
        status = problem.response.status_code
        raise HubError(_status(status, repo), unreachable=status == 429 or status >= 500) from None
    except httpx2.TimeoutException:
        raise HubError(f"{host()} took too long. hint: {_AGAIN}", unreachable=True) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
        why = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise HubError(f"{host()} does not answer: {why}. hint: {_AGAIN}", unreachable=True) from None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:  # an answer of another shape
        raise HubError(
            f"{host()} answers as no hub does ({type(problem).__name__}). hint: HF_ENDPOINT names the hub"
        ) from None


_AGAIN: Final = "check the network or HF_ENDPOINT"


def _status(status: int, repo: str) -> str:
    if status == 401:
        return f"{host()} does not take the token. hint: set HF_TOKEN to a valid one, or unset it"
    if status == 403:
        return f"{host()} gives {repo} not to this account. hint: set HF_TOKEN to a token that may read it"
    if status == 429:
        return f"{host()} wants fewer requests. hint: wait a minute, or set HF_TOKEN"
    return f"{host()} answered {status}. hint: {_AGAIN}"
