"""Chromium without a window, driven over its own protocol: opens pages, evaluates, types, takes pictures."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import ClientConnection, connect

from tests.e2e.server import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

WITHIN_S = 60.0
"""For everything: a busy machine is slow, and nothing here is a measurement."""


class Tab:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection, address: str) -> None:
        self._socket = socket
        self.address = address
        self._numbers = itertools.count(1)
        self.said: list[str] = []
        """What its console, its policy and its scripts had to complain about."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """One command and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WITHIN_S))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._notice(message)

    def _notice(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.said.append(told["exceptionDetails"]["exception"].get("description", "exception"))
        elif message["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.said.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif message["method"] == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.said.append(str(told["args"]))

    def open(self, url: str) -> None:
        """Go there and wait for the page's own scripts."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression; promises are waited for."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str, within_s: float = WITHIN_S) -> None:
        """Until the expression is true."""
        until(lambda: bool(self.evaluate(script)), within_s)

    def text(self, selector: str) -> str:
        """What is read at a place."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        codes = {"Enter": 13, "Tab": 9, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **typed)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """How large the window is and what its person likes."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def choose(self, selector: str, *files: Path) -> None:
        """As a person does in the dialog of a field for files."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def held(self) -> dict[str, float]:
        """What the page holds once its garbage is collected: `Nodes`, `JSEventListeners`, `JSHeapUsedSize`, ..."""
        self.send("Performance.enable")
        self.send("HeapProfiler.collectGarbage")
        return {one["name"]: one["value"] for one in self.send("Performance.getMetrics")["metrics"]}

    def picture(self, file: Path) -> None:
        """A PNG of what is seen."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(folder: Path, *more: str) -> Iterator[Tab]:
    """A browser of its own with one tab and `more` flags, gone at the end. Its microphone is Chromium's fake one."""
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    flags += [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--user-data-dir={folder}",
        *more,
    ]
    process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = folder / "DevToolsActivePort"
        until(lambda: told.exists() and told.read_text().count("\n") >= 1, WITHIN_S)
        port = int(told.read_text().splitlines()[0])
        pages = httpx2.get(f"http://127.0.0.1:{port}/json/list", timeout=20).json()
        with _tab(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")) as tab:
            yield tab
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def another(tab: Tab) -> Iterator[Tab]:
    """A second window of the same browser, as another person has it open."""
    target = tab.send("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
    address = tab.address.rpartition("/")[0] + f"/{target}"
    try:
        with _tab(address) as opened:
            yield opened
    finally:
        tab.send("Target.closeTarget", targetId=target)


@contextlib.contextmanager
def _tab(address: str) -> Iterator[Tab]:
    with connect(address, max_size=2**26, ping_interval=None, close_timeout=1) as socket:
        yield Tab(socket, address)
