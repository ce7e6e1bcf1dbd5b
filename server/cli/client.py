"""The command line's own HTTP client: where the server is, and its answers as data or as one sentence."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import httpx2

from server.cli.console import CliError, ExitCode
from server.settings.listener import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from server.settings.config import Settings

_CONNECT_S = 3
_ANSWER_S = 10


class Client:
    """A connection to one onecard server."""

    def __init__(self, base: str, *, key: str | None) -> None:
        self.base = base
        self.key = key
        try:
            host = urlsplit(base).hostname or ""
        except ValueError:
            raise CliError(f"'{base}' is no address. hint: http://127.0.0.1:8080", ExitCode.USAGE) from None
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S),
            # A proxy for the outside must not be asked for this machine.
            trust_env=not is_loopback(host),
        )

    def get(self, path: str) -> Any:
        """The JSON document at a path. Raises CliError."""
        return self.answered(self.response(path))

    def response(self, path: str) -> httpx2.Response:
        """The answer to a GET, whatever its status. Raises CliError when there is none."""
        try:
            return self._http.get(self.base + path)
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise self._unreachable(problem) from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST, however long the server takes for it. Raises CliError."""
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, read=None)
        try:
            return self.answered(self._http.post(self.base + path, json=body, timeout=timeout))
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise self._unreachable(problem) from None

    def delete(self, path: str) -> Any:
        """The JSON answer to a DELETE. Raises CliError."""
        try:
            return self.answered(self._http.delete(self.base + path))
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise self._unreachable(problem) from None

    def upload(self, path: str, fields: dict[str, str], *, name: str, file: BinaryIO) -> Any:
        """The JSON answer to a form with a file. Raises CliError."""
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, write=None, read=None)
        try:
            return self.answered(
                self._http.post(self.base + path, data=fields, files={"file": (name, file)}, timeout=timeout)
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise self._unreachable(problem) from None

    def download(self, path: str, target: Path) -> None:
        """What a GET answers, into a file. Raises CliError."""
        try:
            with self._http.stream("GET", self.base + path) as response:
                if response.status_code != 200:
                    response.read()
                    self.answered(response)
                with target.open("wb") as file:
                    for piece in response.iter_bytes():
                        file.write(piece)
        except OSError as problem:
            raise CliError(f"{target}: {(problem.strerror or 'it cannot be written').lower()}") from None
        except httpx2.HTTPError as problem:
            raise self._unreachable(problem) from None

    @contextmanager
    def stream(
        self,
        path: str,
        body: dict[str, Any],
        *,
        file: BinaryIO | None = None,
        on_comment: Callable[[str], None] | None = None,
    ) -> Generator[Iterator[dict[str, Any]], None, None]:
        """The `data:` documents of a streamed POST. Leaving the block closes the connection, which cancels the job.

        With a `file` the body is sent as a form, and the file after its fields. `on_comment` is told what the server
        says meanwhile, such as `loading chat 40% estimate_s=3`.
        """
        form: dict[str, Any] = {"json": body} if file is None else {"data": body, "files": {"file": file}}
        try:
            # No read timeout: a large model may take minutes to load, and the server sends comments meanwhile.
            timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, read=None)
            with self._http.stream("POST", self.base + path, timeout=timeout, **form) as response:
                if response.status_code != 200:
                    response.read()
                    self.answered(response)
                yield _documents(response.iter_lines(), on_comment or (lambda _: None))
        except httpx2.HTTPError as problem:
            raise self._unreachable(problem) from None
        except UnicodeEncodeError:
            raise CliError("what is to be sent is no text in UTF-8", ExitCode.USAGE) from None

    def answered(self, response: httpx2.Response) -> Any:
        """The JSON document of an answer. Raises CliError where it is none, or an error."""
        try:
            document = response.json()
        except ValueError:
            raise CliError(f"{self.base} answered {response.status_code} with no JSON. hint: is it onecard?") from None
        if response.status_code == 200:
            return document
        raise problem_of(document, f"{self.base} answered {response.status_code}")

    def _unreachable(self, problem: Exception) -> CliError:
        what = "took too long" if isinstance(problem, httpx2.TimeoutException) else "does not answer"
        return CliError(
            f"{self.base} {what}. hint: `onecard serve` starts a server, --url or ONECARD_URL names another one",
            ExitCode.UNREACHABLE,
        )


def problem_of(document: Any, fallback: str) -> CliError:
    """An error body as the exception that ends a command."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return CliError(fallback)
    code = ExitCode.DOES_NOT_FIT if error.get("code") == "cannot_fit" else ExitCode.ERROR
    hint = " hint: set ONECARD_API_KEY to the server's key" if error.get("code") == "invalid_api_key" else ""
    param = error.get("param")
    return CliError(str(error.get("message") or fallback) + hint, code, param=param if isinstance(param, str) else None)


def _documents(lines: Iterator[str], on_comment: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Every JSON document of an event stream up to `[DONE]`. Raises CliError for an error event or a bare end."""
    for line in lines:
        if line.startswith(":"):
            on_comment(line.removeprefix(":").strip())
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            document = json.loads(data)
        except ValueError:
            raise CliError("the server sent an event that is no JSON. hint: is it onecard?") from None
        if "error" in document:
            raise problem_of(document, "the server reported an error")
        yield document
    raise CliError("the answer broke off")


def server_url(url: str | None, settings: Settings) -> str:
    """The given address without a trailing `/v1`, else that of the configuration."""
    from server.cli.serve import address

    if url is None:
        return address(settings.server.host, settings.server.port)
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def client_for(url: str | None, settings: Settings) -> Client:
    """A client with the key for that server: ONECARD_API_KEY, or the configuration's own for its own address."""
    own = next(iter(settings.every_key), None) if url is None else None
    return Client(server_url(url, settings), key=os.environ.get("ONECARD_API_KEY") or own)
