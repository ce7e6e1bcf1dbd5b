"""A hub on loopback: the paths that `huggingface_hub` asks, over real HTTP, with faults to order."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = 100_000


@dataclass
class Hub:
    """What it serves, what was asked, and where it stops."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths of files and the ranges asked of them."""
    refuse: dict[str, int] = field(default_factory=dict)
    """Repository -> status of every answer."""
    gated: set[str] = field(default_factory=set)
    stop_after: int | None = None
    """Bytes of one file after which the next answer stalls, until `go` is set."""
    stopped: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    drop_after: int | None = None
    """Bytes of one file after which the connection of one answer ends."""
    spoil: set[str] = field(default_factory=set)
    """Files that come with another byte than the hub states."""
    ranges: bool = True
    commit: str = COMMIT

    def info(self, repo: str) -> dict[str, Any]:
        files = self.repositories[repo]
        return {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": self.commit,
            "downloads": 7,
            "gated": "manual" if repo in self.gated else False,
            "private": False,
            "tags": ["gguf"] if any(name.endswith(".gguf") for name in files) else [],
            "siblings": [sibling(name, content) for name, content in files.items()],
        }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(name: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
    if len(content) >= _LARGE:
        found["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return found


@contextmanager
def hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    state = Hub({repo: dict(files) for repo, files in repositories.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path == "/api/models":
                found = json.dumps([state.info(repo) for repo in state.repositories]).encode()
                self.answer(200, found, Content_Type="application/json")
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.info(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(match[1], match[3])
            else:
                self.answer(404)

        def refused(self, repo: str) -> bool:
            if repo not in state.repositories:
                self.answer(404, X_Error_Code="RepoNotFound")
            elif repo in state.gated:
                self.answer(403, X_Error_Code="GatedRepo")
            elif repo in state.refuse:
                self.answer(state.refuse[repo])
            else:
                return False
            return True

        def info(self, repo: str, revision: str) -> None:
            if self.refused(repo):
                return
            if revision not in ("main", state.commit):
                self.answer(404, X_Error_Code="RevisionNotFound")
                return
            self.answer(200, json.dumps(state.info(repo)).encode(), Content_Type="application/json")

        def file(self, repo: str, name: str) -> None:
            if self.refused(repo):
                return
            content = state.repositories[repo].get(name)
            if content is None:
                self.answer(404, X_Error_Code="EntryNotFound")
                return
            asked = self.headers.get("Range")
            state.asked.append((name, asked))
            etag = sha256(content) if len(content) >= _LARGE else git_id(content)
            if name in state.spoil:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start, end = 0, len(content)
            if asked and state.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
                start = int(match[1])
                end = min(end, int(match[2]) + 1) if match[2] else end
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Repo-Commit", state.commit)
            self.send_header("Content-Length", str(end - start))
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.end_headers()
            if self.command != "HEAD":
                self.body(content[start:end], whole=not (asked and not asked.endswith("-")))

        def body(self, content: bytes, *, whole: bool) -> None:
            stop, drop = (state.stop_after, state.drop_after) if whole else (None, None)
            try:
                if drop is not None and len(content) > drop:
                    state.drop_after = None
                    self.wfile.write(content[:drop])
                    self.close_connection = True
                    return
                if stop is not None and len(content) > stop:
                    self.wfile.write(content[:stop])
                    state.stopped.set()
                    state.go.wait(30)
                    content = content[stop:]
                self.wfile.write(content)
            except OSError:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.go.set()
        server.shutdown()
        server.server_close()
        thread.join()
