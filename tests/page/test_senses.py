"""The page's chat with a picture and a voice, in a real browser before real models: attached, seen, spoken, heard."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from demo.vision.pictures import Look, exam
from tests.http.conftest import Server
from tests.page.browser import Tab, browsing
from tests.page.test_page import ask, in_browser, opened
from tests.speech.conftest import whisper
from tests.speech.sound import SENTENCES, spoken, wav

__all__ = ["whisper"]
GIVEN = """(data, kind, name) => {
  const held = new DataTransfer();
  held.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "a.png", {type: "image/png"}));
  const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
  document.querySelector("#say").dispatchEvent(new Kind(kind, {[name]: held, bubbles: true}));
}"""
"""A file that is dropped or pasted."""
pytestmark = [pytest.mark.engine, in_browser]


@pytest.fixture(scope="module")
def sensing(whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that sees, one that does not, one that hears, and one that draws."""
    models = {"seer": "demo-vision", "blind": "demo", "ear": str(whisper), "artist": "demo-draw"}
    settings = {
        "models": {name: {"path": path} for name, path in models.items()},
        "memory": {"device": "cpu", "budget": "2GiB"},
    }
    running = Server(settings, tmp_path_factory.mktemp("senses") / "server.log", ONECARD_TEST_ENGINE="")
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser whose microphone hears one sentence again and again."""
    folder = tmp_path_factory.mktemp("speaking")
    (folder / "said.wav").write_bytes(wav(spoken(SENTENCES[0])))
    with browsing(folder / "profile", f"--use-file-for-fake-audio-capture={folder}/said.wav") as tab:
        yield tab


@pytest.fixture
def looks(tmp_path: Path) -> tuple[Path, Look]:
    """A picture, and the question of its colour."""
    one = next(look for look in exam() if look.family == "background")
    Image.fromarray(one.pixels).save(tmp_path / "look.png")
    return tmp_path / "look.png", one


def test_images_are_chosen_dropped_pasted_and_seen(speaking: Tab, sensing: Server, looks: tuple[Path, Look]) -> None:
    file, look = looks
    opened(speaking, sensing)
    assert speaking.evaluate("document.querySelector('#model').value") == "seer"
    speaking.wait("!document.querySelector('#see').hidden")
    speaking.evaluate("document.querySelector('#temperature').value = 0")
    speaking.choose("#image", file, file)
    speaking.wait("document.querySelectorAll('#attached img').length === 2")
    assert speaking.evaluate("document.querySelector('#attached img').alt") == "attached image 1"
    speaking.click('[aria-label="Remove image 1"]')
    speaking.wait("document.querySelectorAll('#attached img').length === 1")
    assert look.answer in ask(speaking, look.question)
    assert speaking.evaluate("document.querySelectorAll('#attached li').length") == 0
    assert speaking.evaluate("document.querySelector('.turn.user img').naturalWidth") == look.pixels.shape[1]

    speaking.click("#fresh")
    data = base64.b64encode(file.read_bytes()).decode()
    for kind, held in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        speaking.evaluate(f"({GIVEN})({json.dumps(data)}, '{kind}', '{held}')")
        speaking.wait("document.querySelectorAll('#attached img').length === 1")
        assert look.answer in ask(speaking, look.question), held
        speaking.click("#fresh")
    assert speaking.said == []


def test_what_is_no_picture_or_cannot_be_seen_is_told(
    speaking: Tab, sensing: Server, looks: tuple[Path, Look], tmp_path: Path
) -> None:
    opened(speaking, sensing)
    speaking.wait("!document.querySelector('#see').hidden")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "large.png").write_bytes(bytes(20 * 2**20 + 1))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for name, sentence in (("notes.txt", "is no image"), ("large.png", "is larger than 20 MiB")):
        speaking.choose("#image", tmp_path / name)
        speaking.wait(f"document.querySelector('#spent').textContent === '{name} {sentence}'")
    speaking.choose("#image", tmp_path / "broken.png")
    speaking.wait("document.querySelectorAll('#attached img').length === 1")
    ask(speaking, "what is it?")
    assert "image" in speaking.text("#spent")
    assert speaking.evaluate("document.querySelector('#spent').className") == "bad"

    speaking.evaluate(
        "(() => { const s = document.querySelector('#model'); s.value = 'blind';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert speaking.evaluate("document.querySelector('#see').hidden")
    speaking.choose("#image", looks[0])
    speaking.wait("document.querySelector('#spent').textContent === 'look.png is not attached: blind does not see'")


def test_what_is_said_into_the_microphone_is_written(speaking: Tab, sensing: Server) -> None:
    opened(speaking, sensing)
    speaking.wait("!document.querySelector('#speak').hidden")
    speaking.evaluate("document.querySelector('#speak').focus()")
    speaking.press("Enter")
    speaking.wait("document.querySelector('#speak').getAttribute('aria-pressed') === 'true'")
    speaking.evaluate("new Promise((go) => setTimeout(go, 4000))")  # how long the sentence is, and a little
    speaking.press("Enter")
    speaking.wait("document.querySelector('#say').value !== ''")
    heard = set(re.findall(r"\w+", str(speaking.evaluate("document.querySelector('#say').value")).lower()))
    assert len(heard & {"quick", "brown", "fox", "jumps", "lazy", "dog"}) >= 3, heard
    assert speaking.text("#speak") == "Speak"
    assert speaking.evaluate("document.activeElement.id") == "say"
    assert speaking.said == []


def test_a_model_that_draws_shows_its_image(speaking: Tab, sensing: Server) -> None:
    """Given a model that draws and is loaded, when it is asked, then its image is there, and its seed is told."""
    body = {"model": "artist", "prompt": "a red background"}
    assert sensing.post("/v1/images/generations", body, timeout=300).status == 200
    opened(speaking, sensing)
    speaking.evaluate("document.querySelector('#model').value = 'artist'")
    speaking.evaluate("document.querySelector('#say').value = 'a red background'")
    speaking.click("#send")
    speaking.wait("document.querySelector('#spent').textContent.startsWith('64x64, seed ')")
    assert speaking.evaluate("document.querySelector('.turn.assistant img').naturalWidth") == 64
    assert speaking.evaluate("document.querySelector('.turn.user .text').textContent") == "a red background"
    assert not speaking.evaluate("document.querySelector('#send').disabled")


def test_a_model_that_draws_gets_no_attached_image(speaking: Tab, sensing: Server, looks: tuple[Path, Look]) -> None:
    """Given an image for a model that sees, when one that draws is asked, then that is told, and none sent."""
    opened(speaking, sensing)
    speaking.wait("!document.querySelector('#see').hidden")
    speaking.choose("#image", looks[0])
    speaking.wait("document.querySelectorAll('#attached img').length === 1")
    speaking.evaluate("document.querySelector('#model').value = 'artist'")
    speaking.evaluate("document.querySelector('#say').value = 'a red background'")
    speaking.click("#send")
    speaking.wait("document.querySelector('#spent').textContent.includes('Remove the attached images')")
    assert speaking.evaluate("document.querySelectorAll('#attached img').length") == 1
