"""What Open WebUI sends (backend/open_webui/routers/images.py, engine `openai`), replayed: a prompt, and an edit."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from demo.draw.pictures import background_of
from tests.draw.test_edits import HOLE, PLAIN, form, png
from tests.http.conftest import Answer, Server

pytestmark = pytest.mark.engine
KEY = {"authorization": "Bearer none"}
ASKED = {"model": "toy", "prompt": "a red background", "n": 1, "size": "64x64", "response_format": "b64_json"}


def background(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    (one,) = answer.json()["data"]
    assert "url" not in one
    return background_of(np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).convert("RGB")))


@pytest.mark.parametrize("more", [{}, {"steps": 6, "guidance_scale": 1.5}])
def test_a_prompt(server: Server, more: dict[str, float]) -> None:
    """Given its settings, with and without "Additional Parameters", then the image is in the answer."""
    answer = server.post("/v1/images/generations", {**ASKED, **more}, headers=KEY, timeout=300)
    assert background(answer) == "red"
    assert answer.headers.get("x-onecard-ignored") is None


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit(server: Server, name: str) -> None:
    """Given an image alone, or in a list of one, then it is drawn anew where it is transparent."""
    fields = {"model": "toy", "prompt": "a red background", "n": "1", "response_format": "b64_json"}
    parts = [(f'name="{key}"', value.encode()) for key, value in fields.items()]
    file = (f'name="{name}"; filename="image.png"\r\nContent-Type: image/png', png(HOLE))
    headers = {**KEY, "content-type": "multipart/form-data; boundary=b"}
    answer = server.post("/v1/images/edits", form(*parts, file), headers=headers, timeout=300)
    assert background(answer) == background_of(PLAIN) == "green"


def test_two_images_are_told_to_be_too_many(server: Server) -> None:
    """Given a list of two, then the answer says that one is taken."""
    parts = [('name="model"', b"toy"), ('name="prompt"', b"red")]
    files = [(f'name="image[]"; filename="{i}.png"', png(PLAIN)) for i in range(2)]
    headers = {**KEY, "content-type": "multipart/form-data; boundary=b"}
    answer = server.post("/v1/images/edits", form(*parts, *files), headers=headers, timeout=300)
    assert (answer.status, answer.error["param"]) == (400, "image[]"), answer.body
