"""What is not text in a job: files that a client has sent, and the images and sounds of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from backends.messages.plain import Plain

MediaKind = Literal["image", "audio"]
SENSES: Final[Mapping[MediaKind, str]] = MappingProxyType({"image": "vision", "audio": "hearing"})
"""The capability of models that read a kind of media."""


class SpoolFile(Plain, frozen=True):
    """A file of a request, on the server's disk until its job has ended.

    A worker opens it with `backends.files.model_files`, and treats whatever is in it as a stranger's.
    """

    path: str
    n_bytes: int
    digest: str
    """SHA-256 of its bytes, in hex."""
    media_type: str = ""
    """As the client says; empty where it says nothing."""
    name: str = ""
    """The client's own, without folders; for its ending, and for people."""


class Medium(Plain, frozen=True):
    """An image or a sound of a prompt, as its client sent it; what is in it is a stranger's."""

    kind: MediaKind
    data: bytes
    digest: str
    """SHA-256 of the data, in hex."""
    media_type: str = ""
    """As the client says, such as `image/png`."""
    detail: str = ""
    """How closely to look, as the client says; empty where it says nothing."""
