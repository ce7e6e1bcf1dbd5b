"""The toy that draws, by its built-in name, as its clients ask: the colours of its backgrounds, by their pixels."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from demo.draw import PATH
from demo.draw.pictures import background_of, exam
from server.cli.greeting import _request
from server.settings.builtin import QUESTION
from tests.http.conftest import Server

pytestmark = pytest.mark.engine
EXAM = list(exam(60))


def background(data: bytes) -> str:
    return background_of(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_at_least_57_of_60_backgrounds_have_the_colour_that_was_asked_for(server: Server) -> None:
    """Given prompts of twelve colours, plain or with a shape in front, then the edge has the background's colour."""

    def seen(number: int) -> str:
        body = {"model": "toy", "prompt": EXAM[number][0], "seed": number}
        answer = server.post("/v1/images/generations", body, timeout=300)
        assert answer.status == 200, answer.body
        return background(base64.b64decode(answer.json()["data"][0]["b64_json"]))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(seen, range(len(EXAM))))
    wrong = [(prompt, was) for (prompt, wanted), was in zip(EXAM, found, strict=True) if was != wanted]
    assert len(wrong) <= 3, wrong
    assert server.model("toy")["facts"]["steps"] == 8


def test_it_is_drawn_with_where_nothing_is_configured(tmp_path: Path) -> None:
    """Given an installation alone, when `onecard draw demo-draw` is asked for red, then the file is red."""
    command = [sys.executable, "-m", "server.cli", "draw", "demo-draw", "a red background", "--seed", "1"]
    out = tmp_path / "out.png"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "-o", str(out)], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert background(out.read_bytes()) == "red"


def test_the_request_to_copy_of_a_server_that_draws(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Given what `serve` prints for curl and for OpenAI's client, when sent, then an image comes."""
    path, body, call = _request("toy", "images", QUESTION)
    assert server.post(path, body, timeout=300).status == 200
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        eval(call, {"client": client})
    assert capsys.readouterr().out.startswith("iVBOR")


def test_its_files_are_small() -> None:
    assert sum(file.stat().st_size for file in PATH.rglob("*") if file.is_file()) <= 8 * 10**6
