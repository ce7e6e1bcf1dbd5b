"""What is not text in a job: files that a client has sent."""

from __future__ import annotations

from backends.messages.plain import Plain


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
