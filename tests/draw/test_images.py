"""Images over HTTP: the SDK's examples, formats, seeds, previews, addresses, refusals, and a tenant of memory."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import openai
import pytest
from openai.types import image_generate_params
from PIL import Image

import demo
from backends.diffusion.header import read
from backends.diffusion.route import SURFACE
from tests.cli.terminal import CTRL_C, Terminal
from tests.e2e.server import until
from tests.http.conftest import Answer, Server

PATH = SURFACE.path
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def draw(server: Server, **fields: Any) -> Answer:
    body = {"model": "artist", "prompt": PROMPT, "size": "64x64", **fields}
    return server.post(PATH, {name: value for name, value in body.items() if value is not None}, timeout=300)


def files(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.body
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


def shown(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_sdks_own_example(client: openai.OpenAI) -> None:
    """Given openai-python's examples, when they run here, then an image comes whole and as events."""
    made: Any = client.images.generate(model="artist", prompt=PROMPT, n=1, size="64x64", extra_body={"seed": 4})
    image = base64.b64decode(made.data[0].b64_json)
    assert Image.open(io.BytesIO(image)).size == (64, 64)
    assert made.usage.output_tokens == 64 * 64 // 256
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens > 20
    stream: Any = client.images.generate(
        model="artist", prompt=PROMPT, n=1, size="64x64", stream=True, partial_images=3, extra_body={"seed": 4}
    )
    events = list(stream)
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 3, "image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert base64.b64decode(events[-1].b64_json) == image
    assert len({event.b64_json for event in events}) == 4


def test_a_seed_draws_the_same_bytes_alone_and_in_company(server: Server) -> None:
    """Given images with seeds of their own, when they are drawn alone, together, beside others and in one request, then
    each is the same to the last byte."""
    alone = [files(draw(server, seed=seed))[0] for seed in (7, 8, 9)]
    assert len(set(alone)) == 3
    assert files(draw(server, seed=7, n=3)) == alone
    others: list[dict[str, Any]] = [{"seed": 8}, {"seed": 9}, {"size": "96x64", "seed": 1}, {"steps": 3, "seed": 2}]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda fields: files(draw(server, **fields))[0], [{"seed": 7}, *others]))
    assert found[:3] == alone
    answer = draw(server).json()["data"][0]
    assert files(draw(server, seed=answer["seed"])) == [base64.b64decode(answer["b64_json"])]


def test_every_scheduler_and_format(server: Server) -> None:
    for scheduler in ("ddim", "ddpm", "dpm++", "euler", "euler_a", "lcm", "unipc"):
        image = files(draw(server, prompt="a green background", scheduler=scheduler, steps=12, guidance_scale=3))[0]
        assert image.startswith(b"\x89PNG"), scheduler
        assert shown(image).shape == (64, 64, 3)
    for form, magic in (("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("png", b"\x89PNG")):
        answer = draw(server, output_format=form, steps=2)
        assert files(answer)[0].startswith(magic)
        assert (answer.json()["output_format"], answer.json()["size"]) == (form, "64x64")
    small, large = (len(files(draw(server, output_format="jpeg", output_compression=q, seed=1))[0]) for q in (5, 95))
    assert small < large


@pytest.mark.parametrize("scheduler", ["deis", "heun", "pndm", "lms"])
def test_a_scheduler_that_begins_with_less_noise_than_the_model_knows_is_refused(
    server: Server, scheduler: str
) -> None:
    answer = draw(server, scheduler=scheduler, steps=2)

    assert answer.status == 400
    assert f"{scheduler} begins with less noise than this model was trained with" in answer.body.decode()


def test_a_scheduler_whose_package_is_missing_says_which() -> None:
    from backends.diffusion.denoising import failing  # PyTorch, which collecting does without

    folder = Path(demo.__file__).parent / "draw" / "model"
    header = read(folder)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())

    found = failing(header, {**config, "rescale_betas_zero_snr": False})

    if importlib.util.find_spec("scipy"):
        assert "lms" not in found
    else:
        assert found["lms"].startswith("needs SciPy, which is not installed. hint: `pip install scipy`")


def test_addresses(server: Server) -> None:
    """Given an image that was asked for by its address, then it is there for who has the address."""
    answer = draw(server, response_format="url", output_format="webp", seed=3)
    found = answer.json()["data"][0]
    assert "b64_json" not in found
    path = found["url"].removeprefix(server.url)
    assert re.fullmatch(r"/v1/images/files/img_[0-9a-f]{24}\.webp", path)
    fetched = server.get(path)
    assert (fetched.status, fetched.headers["content-type"]) == (200, "image/webp")
    assert [fetched.body] == files(draw(server, output_format="webp", seed=3))
    gone = server.get("/v1/images/files/img_0.png")
    assert (gone.status, gone.error["code"]) == (404, "image_not_found")


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no multiple of 8": ({"size": "63x64"}, "size", "no multiple of 8. hint: 64x64"),
    "too large": ({"size": "512x512"}, "size", "262144 pixels, and this model is loaded for 16384"),
    "a thread": ({"size": "8x2048"}, "size", "outside of 64..4096"),
    "no size": ({"size": "large"}, "size", "'auto' or a width and a height"),
    "no steps": ({"steps": 0}, "steps", ">= 1"),
    "a million steps": ({"steps": 10**6}, "steps", "<= 150"),
    "a scheduler": ({"scheduler": "magic"}, "scheduler", "'dpm++'"),
    "no prompt": ({"prompt": ""}, "prompt", "empty string"),
    "a long prompt": ({"prompt": "a red circle " * 26}, "prompt", "78 tokens, and this model's text encoder reads 30"),
    "much that is unwanted": ({"negative_prompt": "red " * 80}, "negative_prompt", "reads 30"),
    "unwanted without guidance": (
        {"negative_prompt": "red", "guidance_scale": 1.0},
        "negative_prompt",
        "guidance_scale is 1.",
    ),
    "no image": ({"n": 0}, "n", ">= 1"),
    "many images": ({"n": 11}, "n", "<= 10"),
    "a stream of two": ({"stream": True, "n": 2}, "n", "a stream has one"),
    "previews without a stream": ({"partial_images": 1}, "partial_images", "only a stream"),
    "a stream of addresses": ({"stream": True, "response_format": "url"}, "response_format", "hold the images"),
    "a small png": ({"output_compression": 5}, "output_compression", "'jpeg' or 'webp'"),
    "another format": ({"output_format": "gif"}, "output_format", "'webp'"),
    "glass": ({"background": "transparent"}, "background", "not supported"),
    "a seed below 0": ({"seed": -1}, "seed", ">= 0"),
    "no number": ({"guidance_scale": "7"}, "guidance_scale", "decimal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_with_the_reason(server: Server, case: str) -> None:
    fields, param, sentence = REFUSED[case]
    answer = draw(server, **fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert sentence in answer.error["message"]


def test_every_published_field_is_known() -> None:
    assert {*get_type_hints(image_generate_params.ImageGenerateParamsBase)} <= {*SURFACE.fields}


@contextlib.contextmanager
def posted(server: Server, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A connection on which an image was asked for; its client hangs up at the end."""
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


def received(connection: socket.socket, *until_: bytes) -> bytes:
    """What comes, up to all of these."""
    came = b""
    while not all(mark in came for mark in until_):
        part = connection.recv(4096)
        assert part, came
        came += part
    return came


def test_hanging_up_ends_the_work_long_before_its_steps_are_done(server: Server) -> None:
    """Given an image of many steps, when its client is gone, then the engine is idle before these could be done."""
    before = counted(server, "image_steps_total")
    with posted(server, {"model": "artist", "prompt": PROMPT, "steps": 150, "size": "128x128", "stream": True}) as sent:
        received(sent, b": step 3/150")
    server.wait_idle(20)
    assert counted(server, "image_steps_total") - before < 150
    assert 'finished_reason="abort"' in server.get("/metrics").body.decode()


def counted(server: Server, name: str) -> float:
    text = server.get("/metrics").body.decode()
    found = re.search(rf'onecard_{name}\{{model_name="artist"\}} (.+)', text)
    return float(found[1]) if found is not None else 0.0


def test_it_is_a_tenant_like_the_others(server: Server) -> None:
    """Given room for one of them, when another is asked for, then the first leaves; and it tells what it is."""
    files(draw(server, n=2))
    listed = {one["id"]: one for one in server.get("/v1/models").json()["data"]}
    assert listed["artist"]["capabilities"] == ["image_generation"]
    facts = {"size": "64x64", "largest_image": "128x128", "steps": 8, "scheduler": "ddim", "precision": "float32"}
    assert (server.model("artist")["state"], server.model("artist")["facts"]) == ("ready", facts)
    capacity = server.get("/v1/capacity?model=artist").json()
    assert (capacity["gives"], capacity["fits"], capacity["plan"]["parallel"]) == ("images", True, 4)
    assert counted(server, "images_total") >= 2
    chat = server.post("/v1/completions", {"model": "artist", "prompt": "a"})
    assert (chat.status, "draws images" in chat.error["message"]) == (400, True)
    assert "draws no images" in draw(server, model="chat").error["message"]
    files(draw(server, model="other"))
    until(lambda: server.model("artist")["state"] == "unloaded", 20)


def test_a_stream_says_that_its_image_waits(server: Server) -> None:
    """Given a model that draws one image after the other, when it is busy, then the next stream tells its place."""
    asked = {"model": "other", "prompt": PROMPT, "size": "64x64", "steps": 150}
    with posted(server, {**asked, "n": 10}), posted(server, {**asked, "stream": True, "steps": 1}) as waits:
        received(waits, b"200 OK", b": queued position=")
    server.wait_idle(20)


def test_an_interrupted_command_leaves_its_line_and_no_file(server: Server, tmp_path: Path) -> None:
    arguments = ["draw", "artist", PROMPT, "-o", "out.png", "--steps", "150", "--size", "128x128", "--url", server.url]
    with Terminal(arguments, os.environ, tmp_path) as terminal:
        terminal.expect("step 2/150")
        terminal.type(CTRL_C)
        terminal.shows()
        assert terminal.ends() == 130
    assert list(tmp_path.iterdir()) == []
    server.wait_idle(20)


def test_the_command_writes_a_file(server: Server, tmp_path: Path) -> None:
    """Given `onecard draw`, when it ends, then the file is the image that the same seed draws over HTTP."""
    command = [sys.executable, "-m", "server.cli", "draw", "artist", PROMPT, "--url", server.url, "--seed", "5"]
    out = tmp_path / "out.png"
    done = subprocess.run([*command, "-o", str(out), "--size", "64x64"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [out.read_bytes()] == files(draw(server, seed=5))
    assert done.stderr == f"{out}: 64x64, seed 5, {out.stat().st_size} bytes\n"
    magic = [*command, "-o", str(tmp_path / "none.png"), "--scheduler", "magic"]
    refused = subprocess.run(magic, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("onecard: --scheduler: ")
    assert "'magic'" in refused.stderr
    wrong = subprocess.run([*command, "-o", "out.gif"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "names no format" in wrong.stderr) == (2, True)
