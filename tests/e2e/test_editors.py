"""What llama.vim and llama.vscode send to `/infill`, by their sources, field by field, and what they read of it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.e2e.server import Server
from tests.models import canary_p

pytestmark = pytest.mark.engine

CHUNKS: list[dict[str, Any]] = [
    {"text": f"def f{i}():\n    return {i}\n", "time": 1_700_000_000 + i, "filename": f"{i}.py"} for i in range(3)
]
PREFIX, LINE, SUFFIX = "import os\n\ndef main():\n", "    path = ", "\n    return path\n"
SAMPLERS = ["top_k", "top_p", "infill"]
TIMINGS = ("prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_second")
"""What both show beside a suggestion."""
READ_BY_VIM = [
    "content",
    *(f"timings/{name}" for name in ("prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second")),
    *(f"timings/{name}" for name in ("predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second")),
    "truncated",
    "tokens_cached",
]
VIM: dict[str, Any] = {
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": CHUNKS,
    "prompt": LINE,
    "n_predict": 128,
    "stop": [],
    "n_indent": 0,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": SAMPLERS,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": READ_BY_VIM,
    "model": "canary",
}
VIM_AHEAD: dict[str, Any] = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": CHUNKS,
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "stream": False,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
    "model": "canary",
}
CODE: dict[str, Any] = {
    "input_prefix": PREFIX,
    "input_suffix": SUFFIX,
    "input_extra": CHUNKS,
    "prompt": LINE,
    "n_predict": 128,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": SAMPLERS,
    "cache_prompt": True,
    "n_indent": 4,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
}
CODE_AHEAD: dict[str, Any] = {
    **{name: VIM_AHEAD[name] for name in ("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict")},
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1,
}


@pytest.fixture(autouse=True)
def loaded(server: Server) -> None:
    """Their limits of time count from a model that is there."""
    post(server, VIM_AHEAD)


def post(server: Server, body: dict[str, Any]) -> Any:
    """llama.vscode names no model: its URL does."""
    reply = httpx2.post(f"{server.url}/infill?model=canary", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-onecard-ignored"] == "samplers"
    return reply.json()


def is_suggestion(text: str) -> bool:
    """The model's golden text, as far as the time allowed."""
    return len(text) > 0 and canary_p.expected_infill(128).startswith(text)


def test_llama_vim_gets_what_it_reads(server: Server) -> None:
    found = post(server, VIM)

    assert list(found) == READ_BY_VIM
    assert is_suggestion(found["content"])
    assert found["timings/predicted_n"] == len(canary_p.tokens_of(found["content"]))
    assert all(found[f"timings/{name}"] > 0 for name in TIMINGS)
    assert found["tokens_cached"] > found["timings/predicted_n"]
    assert found["truncated"] is False


def test_llama_vscode_gets_what_it_reads(server: Server) -> None:
    found = post(server, CODE)

    assert is_suggestion(found["content"])
    assert found["generation_settings"]["n_ctx"] == 2048
    assert all(found["timings"][name] > 0 for name in TIMINGS)
    assert found["tokens_cached"] == found["tokens_evaluated"] + found["tokens_predicted"]
    assert found["truncated"] is False


def test_the_files_that_are_sent_ahead_are_computed_ahead(server: Server) -> None:
    files = [{**chunk, "text": chunk["text"] * 20} for chunk in CHUNKS]
    assert post(server, {**VIM_AHEAD, "input_extra": files}) == {}
    ahead = post(server, {**CODE_AHEAD, "input_extra": files})
    assert (ahead["content"], ahead["tokens_predicted"]) == ("", 0)

    after = post(server, {**CODE, "input_extra": files})

    n_files = sum(len(canary_p.tokens_of(file["text"])) for file in files)
    assert after["timings"]["cache_n"] > n_files
    assert after["timings"]["prompt_n"] < 100


def test_more_files_than_fit_are_told_of(server: Server) -> None:
    files = [{**chunk, "text": chunk["text"] * 40} for chunk in CHUNKS * 3]
    assert post(server, {**VIM, "input_extra": files, "t_max_prompt_ms": 20_000})["truncated"] is True


def test_a_stream_gives_the_same_text(server: Server) -> None:
    ask = {**CODE, "n_predict": 20, "t_max_predict_ms": 20_000, "t_max_prompt_ms": 20_000}
    whole = post(server, ask)
    body = httpx2.post(f"{server.url}/infill?model=canary", json={**ask, "stream": True}, timeout=60).text

    objects = [json.loads(block.removeprefix("data: ")) for block in body.strip().split("\n\n")]
    assert "".join(found["content"] for found in objects) == whole["content"] == canary_p.expected_infill(20)
    assert objects[-1]["stop"] is True
    assert objects[-1].keys() == whole.keys()
