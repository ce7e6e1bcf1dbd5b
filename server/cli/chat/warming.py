"""The model of a chat on its way into memory while its user types: the load begins with the prompt, not the question.

It is only ever a head start. What goes wrong here is told by the question itself, and a server whose key may not load
by hand loads at the first question.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from server.cli.console import CliError

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.cli.client import Client

_EVERY_S: Final = 0.2


class Warming:
    """See the module's text. Threads that ask the server; they end with this process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._wanted = ""
        self.told = ""
        """`loading chat, 40%` while it loads, else nothing; for the person who types."""

        self.on_change: Callable[[], None] = lambda: None

    def begin(self, model: str) -> None:
        """Have it loaded from now on; returns at once."""
        self._wanted = model
        threading.Thread(target=self._run, args=(model,), name="warming", daemon=True).start()

    def _run(self, model: str) -> None:
        try:
            found = self._client.get(f"/v1/models/{quote(model)}")
        except CliError:
            return
        if found.get("state") == "ready":
            return
        over = threading.Event()
        threading.Thread(target=self._load, args=(model, over), name="warming-load", daemon=True).start()
        while not over.wait(_EVERY_S):
            self._tell(model, self._loaded(found["id"]))
        self._tell(model, None)

    def _load(self, model: str, over: threading.Event) -> None:
        try:
            self._client.post(f"/v1/models/{quote(model)}/load", {})
        except CliError:
            pass  # the question tells
        finally:
            over.set()

    def _loaded(self, name: str) -> float | None:
        """The share that is loaded; None where it is not loading."""
        try:
            lines: list[dict[str, Any]] = self._client.get("/v1/status")["models"]
        except CliError:
            return None
        return next((line.get("loaded") for line in lines if line["name"] == name), None)

    def _tell(self, model: str, loaded: float | None) -> None:
        told = "" if loaded is None else f"loading {model}, {loaded:.0%}"
        if model == self._wanted and told != self.told:
            self.told = told
            self.on_change()
