"""Images drawn from others: edits with and without a mask, variations, and files that are no such thing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from demo.draw.pictures import COLOURS
from tests.http.conftest import Answer, Server

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
SIDE = 64


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def shown(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


PLAIN = np.full((SIDE, SIDE, 3), COLOURS["green"], np.uint8)
HOLE = np.dstack([PLAIN, np.full((SIDE, SIDE), 255, np.uint8)])
HOLE[16:48, 16:48, 3] = 0
"""The same, transparent in its middle."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def edit(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "artist", "image": png(PLAIN), "prompt": "a red background", "extra_body": {"seed": 1}, **fields}
    return client.images.edit(**asked)


def test_only_what_the_mask_leaves_open_changes(client: openai.OpenAI) -> None:
    """Given a mask, or an image that is transparent itself, then the rest is the same to the last pixel."""
    open_pixels = HOLE[..., 3] == 0
    for fields in ({"mask": png(HOLE)}, {"image": png(HOLE), "extra_body": {"seed": 1, "strength": 1}}):
        made = shown(edit(client, **fields).data[0].b64_json)
        assert np.array_equal(made[~open_pixels], PLAIN[~open_pixels])
        assert (made[open_pixels] != PLAIN[open_pixels]).any(axis=-1).mean() > 0.5


def test_strength_says_how_much_changes(client: openai.OpenAI) -> None:
    """Given an image without a mask, then each strength gives another image, of its size."""
    wide = np.full((64, 96, 3), COLOURS["green"], np.uint8)
    made = [
        shown(edit(client, image=png(wide), extra_body={"seed": 1, "strength": strength}).data[0].b64_json)
        for strength in (0.25, 0.5, 1.0)
    ]
    assert {one.shape for one in made} == {wide.shape}
    assert len({one.tobytes() for one in made}) == 3


def test_variations_and_streams(client: openai.OpenAI) -> None:
    made: Any = client.images.create_variation(model="artist", image=png(PLAIN), n=2)
    assert len({one.b64_json for one in made.data}) == 2
    events = list(edit(client, stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[-1].b64_json == edit(client).data[0].b64_json


def test_a_variation_changes_all_of_an_image_whatever_of_it_is_transparent(client: openai.OpenAI) -> None:
    """Given an image with a hole, when varied, then what is outside of the hole changes, too."""
    made: Any = client.images.create_variation(model="artist", image=png(HOLE))
    assert (shown(made.data[0].b64_json) != PLAIN).any(axis=-1)[HOLE[..., 3] != 0].mean() > 0.5


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(
            f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts
        )
        + b"--b--\r\n"
    )


def sent(server: Server, path: str, fields: dict[str, str], **files: bytes) -> Answer:
    parts = [(f'name="{name}"', value.encode()) for name, value in {"model": "artist", **fields}.items()]
    parts += [(f'name="{name}"; filename="{name}.png"', data) for name, data in files.items()]
    return server.post(path, form(*parts), headers={"content-type": "multipart/form-data; boundary=b"}, timeout=300)


def huge() -> bytes:
    """A PNG of 17 million white pixels, in few bytes."""
    file = io.BytesIO()
    Image.new("1", (4200, 4200), 1).save(file, "png")
    return file.getvalue()


RED = {"prompt": "red"}
REFUSED: dict[str, tuple[str, dict[str, str], dict[str, bytes], str, str]] = {
    "no image": (EDITS, RED, {}, "image", "Missing required parameter"),
    "no prompt": (EDITS, {}, {"image": png(PLAIN)}, "prompt", "Missing required parameter"),
    "a text": (EDITS, RED, {"image": b"a red picture"}, "image", "is no image that can be read"),
    "a huge image": (EDITS, RED, {"image": huge()}, "image", "4200 x 4200 pixels, and 16 million"),
    "a broken image": (EDITS, RED, {"image": png(PLAIN)[:60]}, "image", "is broken"),
    "a whole mask": (EDITS, RED, {"image": png(PLAIN), "mask": png(PLAIN)}, "mask", "no transparent pixel"),
    "a small mask": (
        EDITS,
        RED,
        {"image": png(PLAIN), "mask": png(HOLE[:32])},
        "mask",
        "64 x 32 pixels and the image 64 x",
    ),
    "no steps": (EDITS, {**RED, "steps": "0"}, {"image": png(PLAIN)}, "steps", ">= 1"),
    "a million steps": (EDITS, {**RED, "steps": "1000000"}, {"image": png(PLAIN)}, "steps", "<= 150"),
    "no strength": (EDITS, {**RED, "strength": "0"}, {"image": png(PLAIN)}, "strength", "> 0"),
    "little strength": (EDITS, {**RED, "strength": "0.01"}, {"image": png(PLAIN)}, "strength", "none of 8 steps"),
    "fidelity": (EDITS, {**RED, "input_fidelity": "high"}, {"image": png(PLAIN)}, "input_fidelity", "'strength'"),
    "a large size": (EDITS, {**RED, "size": "512x512"}, {"image": png(PLAIN)}, "size", "at most"),
    "words for a variation": (VARIATIONS, RED, {"image": png(PLAIN)}, "prompt", "/v1/images/edits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_from_is_refused_with_the_reason(server: Server, case: str) -> None:
    path, fields, files, param, sentence = REFUSED[case]
    answer = sent(server, path, fields, **files)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert sentence in answer.error["message"]


def test_edits_are_forms(server: Server) -> None:
    assert server.post(EDITS, {"model": "artist", "prompt": "red"}).status == 415
