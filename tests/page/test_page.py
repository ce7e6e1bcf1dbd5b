"""The page at `/` in a real browser: chat and status, hostile texts, keys, the keyboard, and what axe-core finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import axe_core_python
import pytest

from tests.http.conftest import ADMIN, KEY, Server
from tests.page.browser import CHROMIUM, Tab
from tests.page.conftest import HOSTILE

FILES = Path(__file__).resolve().parents[2] / "server" / "page"
AXE = Path(axe_core_python.__file__).parent / "axe.min.js"
TOOLS = [{"name": "turn_on", "parameters": {"type": "object"}}]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium")


def opened(tab: Tab, server: Server) -> None:
    """The page of a server, with its models listed."""
    tab.look(width=1300, height=900)
    tab.said.clear()
    tab.open(server.url)
    tab.wait("document.querySelectorAll('#model option').length > 0")


def ask(tab: Tab, text: str) -> str:
    """What is said last, once the answer has ended."""
    tab.wait("!document.querySelector('#send').disabled")
    tab.evaluate("document.querySelector('#spent').textContent = ''; document.querySelector('#say').focus()")
    tab.type(text)
    tab.press("Enter")
    tab.wait("!['', 'waiting'].includes(document.querySelector('#spent').textContent)")
    tab.wait("document.querySelector('#stop').disabled")
    return str(tab.evaluate("[...document.querySelectorAll('.turn.assistant')].at(-1)?.innerText ?? ''"))


def test_it_is_small_and_asks_no_one_else(server):
    files = [file for file in FILES.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 80_000
    for file in files:
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text), file
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}, file
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        answer = server.get(path)
        assert answer.body == file.read_bytes()
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert [server.get(f"/page/{name}").status for name in ("none.js", "index.html", "..%2fapp.py")] == [404] * 3
    assert server.call("HEAD", "/").status == 200  # by which clients of Ollama's see that it is there


@in_browser
def test_a_chat_streams_and_shows_reasoning_and_calls(tab, server):
    opened(tab, server)
    assert "echo: hello there" in ask(tab, "hello there")
    assert "tokens" in tab.text("#spent")

    reasoned = ask(tab, "!say <think>so it is</think>yes")
    assert "yes" in reasoned
    assert tab.evaluate("[...document.querySelectorAll('.turn details .text')].at(-1).textContent") == "so it is"

    tab.evaluate(f"document.querySelector('#tools').value = {json.dumps(json.dumps(TOOLS))}")
    called = ask(tab, '!say <tool_call>{"name": "turn_on", "arguments": {"lamp": "hall"}}</tool_call>')
    assert "calls turn_on" in called
    tab.type("it is on")
    tab.click(".turn form button")
    tab.wait("document.querySelector('.turn.tool')?.innerText.includes('it is on')")
    tab.wait("document.querySelector('#stop').disabled")
    assert tab.said == []


@in_browser
def test_an_answer_is_stopped_and_a_refusal_is_told(tab, server):
    opened(tab, server)
    tab.evaluate("document.querySelector('#say').focus()")
    tab.type("!slow 100 5000")
    tab.press("Enter")
    tab.wait("[...document.querySelectorAll('.turn.assistant')].at(-1)?.innerText.includes('1 2')")
    tab.click("#stop")
    tab.wait("document.querySelector('#spent').innerText === 'stopped'")
    server.wait_idle()
    tab.click("#fresh")
    ask(tab, "!refuse not today")
    assert tab.text("#spent") == "not today"


@in_browser
def test_models_are_moved_by_keyboard(tab, server):
    assert server.post("/v1/models/fake/unload", {}).status == 200
    opened(tab, server)
    for verb, state in (("load", "ready"), ("pin", "pinned"), ("unpin", "leaves in"), ("unload", "unloaded")):
        button = f'[data-verb="{verb}"][data-model="fake"]'
        tab.wait(f"document.querySelector({json.dumps(button)}) !== null")
        tab.evaluate(f"document.querySelector({json.dumps(button)}).focus()")
        tab.press("Enter")
        tab.wait(f"document.querySelector('#told').innerText === '{verb} fake: done'")
        tab.wait(f"document.querySelector('#models tbody tr').innerText.includes('{state}')")
    tab.wait("document.querySelector('#events').innerText.includes('unloading fake, manual')")
    assert "budget of 2.0 GiB" in tab.text("#memory")
    assert tab.said == []


@in_browser
def test_no_name_message_or_call_becomes_a_script(tab, hostile):
    opened(tab, hostile)
    assert tab.text("#models td.name").startswith(HOSTILE)
    evil = '<script>window.hit=1</script><a href="javascript:window.hit=1">x</a>'
    assert evil in ask(tab, f"!say {evil}")
    tab.evaluate(f"document.querySelector('#tools').value = {json.dumps(json.dumps(TOOLS))}")
    call = json.dumps({"name": "turn_on", "arguments": {"x": HOSTILE}})
    assert HOSTILE in ask(tab, f"!say <tool_call>{call}</tool_call>")
    tab.evaluate("document.querySelector('#tools').value = ''")
    assert tab.evaluate("window.hit") is None
    assert tab.evaluate("document.querySelectorAll('#chat script, #chat a, main img').length") == 0
    blocked = "try { document.body.innerHTML = '<b>x</b>'; 'done' } catch (error) { error.name }"
    assert tab.evaluate(blocked) == "TypeError"  # its policy takes no text for markup


@in_browser
def test_with_keys_it_asks_for_one_and_keeps_it_in_its_tab(tab, keyed):
    tab.open(keyed.url)
    tab.wait("!document.querySelector('#key').hidden && document.activeElement.id === 'secret'")
    for key, listed in (("wrong", False), (KEY, True)):
        tab.evaluate("document.querySelector('#secret').focus()")
        tab.type(key)
        tab.press("Enter")
        tab.wait(
            "document.querySelectorAll('#model option').length > 0"
            if listed
            else "!document.querySelector('#key').hidden"
        )
    assert "echo: hello" in ask(tab, "hello")
    stored = "[Object.values(sessionStorage).join(), Object.keys(localStorage).length, document.cookie]"
    assert tab.evaluate(stored) == [KEY, 0, ""]

    tab.click('[data-verb="pin"]')
    tab.wait("document.querySelector('#told').innerText.includes('needs an admin key')")
    tab.evaluate(f"sessionStorage.setItem('onecard-key', {json.dumps(ADMIN)})")
    for verb in ("pin", "unpin"):
        tab.click(f'[data-verb="{verb}"]')
        tab.wait(f"document.querySelector('#told').innerText === '{verb} fake: done'")
        tab.wait(f"document.querySelector('[data-verb=\"{verb}\"][data-model=fake]') === null")
    tab.evaluate("sessionStorage.clear()")


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (390, False), (390, True)])
def test_axe_core_finds_nothing_serious(tab, server, width, dark):
    opened(tab, server)
    ask(tab, "hello")
    tab.look(width=width, height=800, dark=dark)
    tab.evaluate("document.querySelector('#options').open = true")
    tab.evaluate(AXE.read_text() + "; null")
    found: list[dict[str, Any]] = tab.evaluate("axe.run().then((found) => found.violations)")
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
