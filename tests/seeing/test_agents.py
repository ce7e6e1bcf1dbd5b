"""Agents that look at pictures, as they send them: Codex's view_image, Claude Code's Read of a PNG, and the next turn.

The requests have the shapes that these programs send: what a tool has shown is an image inside its result.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from demo.vision.pictures import Look, exam
from tests.e2e.server import KEY, Server, serving

pytestmark = pytest.mark.engine
LOOK = next(one for one in exam() if one.family == "background")
N_ROWS = 36


@pytest.fixture(scope="module")
def server(vision_model: Path | str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: dict[str, Path | str] = {"seer": vision_model}
    with serving(tmp_path_factory.mktemp("agents"), models=models, flags=("--parallel", "2")) as running:
        yield running


def png(one: Look) -> str:
    file = io.BytesIO()
    Image.fromarray(one.pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def events(server: Server, path: str, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """What a stream says, event by event."""
    told = []
    with httpx2.stream("POST", f"{server.url}{path}", json=body, headers=headers, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        told += [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    return told


def codex(*, answered: str = "", more: str = "") -> dict[str, Any]:
    """A turn of Codex after its model has called view_image."""
    call = {"type": "function_call", "name": "view_image", "arguments": '{"path":"a.png"}', "call_id": "call_1"}
    shown = [{"type": "input_image", "image_url": f"data:image/png;base64,{png(LOOK)}"}]
    turns: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look at a.png."}]},
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": shown},
    ]
    if answered:
        said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": answered}]}
        turns += [said, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": more}]}]
    parameters = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    return {
        "model": "seer",
        "instructions": "You are a helpful assistant.",
        "input": turns,
        "tools": [{"type": "function", "name": "view_image", "description": "Attach an image", "strict": False,
                   "parameters": parameters}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": None,
        "store": False,
        "stream": True,
        "include": [],
        "prompt_cache_key": "a-session",
        "temperature": 0,
    }  # fmt: skip


def claude(*, answered: str = "", more: str = "") -> dict[str, Any]:
    """A turn of Claude Code after its model has called Read."""
    source = {"type": "base64", "media_type": "image/png", "data": png(LOOK)}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image", "source": source}]}
    used = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "/a.png"}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Look at a.png."}]},
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]},
    ]
    if answered:
        turns += [{"role": "assistant", "content": [{"type": "text", "text": answered}]}]
        turns += [{"role": "user", "content": [{"type": "text", "text": more}]}]
    schema = {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]}
    return {
        "model": "seer",
        "system": [{"type": "text", "text": "You are a helpful assistant.", "cache_control": {"type": "ephemeral"}}],
        "messages": turns,
        "tools": [{"name": "Read", "description": "Reads a file", "input_schema": schema}],
        "metadata": {"user_id": "someone"},
        "max_tokens": 32000,
        "temperature": 0,
        "stream": True,
    }


def test_codex_views_an_image_and_goes_on(server: Server) -> None:
    before = server.metric("onecard_image_tokens_total", model_name="seer")
    first = events(server, "/v1/responses", codex(), authorization=f"Bearer {KEY}")
    assert first[-1]["type"] == "response.completed"
    assert first[-1]["response"]["usage"]["input_tokens"] > N_ROWS
    more = codex(answered="I see it.", more=LOOK.question)
    second = events(server, "/v1/responses", more, authorization=f"Bearer {KEY}")[-1]["response"]
    assert second["status"] == "completed"
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > N_ROWS
    assert server.metric("onecard_image_tokens_total", model_name="seer") - before == 2 * N_ROWS


def test_claude_code_reads_an_image_and_goes_on(server: Server) -> None:
    encoded = server.metric("onecard_images_encoded_total", model_name="seer")
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    first = events(server, "/v1/messages?beta=true", claude(), **headers)
    assert first[-1]["type"] == "message_stop"
    more = claude(answered="I see it.", more=LOOK.question)
    second = events(server, "/v1/messages?beta=true", more, **headers)
    [started] = [event["message"] for event in second if event["type"] == "message_start"]
    usage = started["usage"]
    assert usage["cache_read_input_tokens"] > N_ROWS
    assert "".join(e["delta"].get("text", "") for e in second if e["type"] == "content_block_delta")
    assert server.metric("onecard_images_encoded_total", model_name="seer") - encoded <= 1
