"""Paths of images in a question, as terminals write them when a file is dragged or pasted: found, and taken out. Pure.

Quoted, with backslashes before spaces, or as a `file://` address. What is no path to an image stays a word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_PATH: Final = re.compile(
    r"""(?<!\S)(?:'(?P<single>[^'\n]+)'|"(?P<double>[^"\n]+)"|(?P<bare>(?:file://|~/|\.{0,2}/)(?:\\.|[^\s\\])+))(?!\S)"""
)
_IMAGE: Final = re.compile(r".+\.(?:png|jpe?g|gif|webp)", re.IGNORECASE | re.DOTALL)
_BEGINS: Final = ("/", "~/", "./", "../", "file://")


class Dropped(NamedTuple):
    """A question without its images."""

    text: str
    paths: list[str]


def dropped(text: str, is_file: Callable[[str], bool]) -> Dropped:
    """The paths to images in a text, in order, and the text without them; `is_file` says which there are."""
    paths: list[str] = []

    def taken(match: re.Match[str]) -> str:
        path = _written(match)
        if path is None or not is_file(path):
            return match.group()
        paths.append(path)
        return ""

    rest = _PATH.sub(taken, text)
    return Dropped(rest.strip() if paths else text, paths)


def _written(match: re.Match[str]) -> str | None:
    """The path that is meant; None for what is none, or none of an image."""
    path = match["single"] or match["double"]
    if path is None:
        path = match["bare"] if match["bare"].startswith("file://") else re.sub(r"\\(.)", r"\1", match["bare"])
    if not path.startswith(_BEGINS) or not _IMAGE.fullmatch(path):
        return None
    return unquote(urlsplit(path).path) if path.startswith("file://") else path
