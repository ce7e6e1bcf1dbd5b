"""The same picture arrives from all three surfaces as the same bytes; what is none is refused where it stands."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import Server

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
BASE64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{BASE64}"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
OLLAMA, TEXT = "/api/chat", "/api/generate"


def seen(detail: str = "") -> str:
    return f"[image image/png {len(PNG)} {hashlib.sha256(PNG).hexdigest()[:8]} {detail}]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, canary_path: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("seeing")
    shutil.copy(canary_path, folder / "seer.gguf")
    models = {"seer": folder / "seer.gguf", "blind": canary_path}
    settings = {
        "models": {name: {"path": str(path), "context": 4096, "parallel": 2} for name, path in models.items()},
        "memory": {"device": "cpu"},
    }
    env = {"ONECARD_BACKENDS": "tests.seeing.backend:Seers", "ONECARD_TEST_ENGINE": "tests.seeing.engine:load"}
    running = Server(settings, folder / "log", **env)
    yield running
    assert running.stop() == 0, running.log


def chat(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def response(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


def message(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}], "max_tokens": 99}


def images(*found: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "look:", "images": [*found]}], "stream": False}


def block(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64, **source}}


def image(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


LOOK = {"type": "text", "text": "look:"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SHOWN: list[tuple[str, str, dict[str, Any], str]] = [
    ("in a chat", CHAT, chat(LOOK, image(URL)), f"user: look: {seen()}"),
    ("first", CHAT, chat(image(URL), LOOK), f"user: {seen()} look:"),
    ("with a detail", CHAT, chat(image(URL, detail="low")), f"user: {seen('low')}"),
    ("as a plain string", CHAT, chat({"type": "image_url", "image_url": URL}), f"user: {seen()}"),
    ("with a parameter", CHAT, chat(image(f"data:image/png;charset=utf-8;base64,{BASE64}")), f"user: {seen()}"),
    ("without a type", CHAT, chat(image(f"data:;base64,{BASE64}")), f"user: {seen().replace('image/png', '')}"),
    (
        "of neighbours that become one message",
        CHAT,
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [image(URL)]}]},
        f"user: a {seen()}",
    ),
    (
        "of a tool",
        CHAT,
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": [image(URL)]},
            ]
        },
        f"user: a / assistant:  / tool: {seen()}",
    ),
    (
        "in a response",
        RESPONSES,
        response({"type": "input_text", "text": "look:"}, {"type": "input_image", "image_url": URL, "detail": "high"}),
        f"user: look: {seen('high')}",
    ),
    (
        "as a function's output",
        RESPONSES,
        {
            "input": [
                {"role": "user", "content": "a"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image", "image_url": URL}],
                },
            ]
        },
        f"user: a / assistant:  / tool: {seen()}",
    ),
    ("for Ollama's clients", OLLAMA, images(BASE64), f"user: {seen().replace('image/png', '')} look:"),
    (
        "beside a prompt",
        TEXT,
        {"prompt": "look:", "images": [BASE64], "stream": False},
        f"user: {seen().replace('image/png', '')} look:",
    ),
    ("in a message", MESSAGES, message(block(), LOOK), f"user: {seen()} look:"),
    (
        "as a tool's result that is an error",
        MESSAGES,
        {
            "max_tokens": 99,
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c", "content": [block()], "is_error": True}],
                },
            ],
        },
        f"user: a / assistant:  / tool: Error: {seen()}",
    ),
]


def text_of(path: str, answer: dict[str, Any]) -> str:
    if path == CHAT:
        return str(answer["choices"][0]["message"]["content"])
    if path == RESPONSES:
        return str(answer["output"][0]["content"][0]["text"])
    if path in (OLLAMA, TEXT):
        return str(answer["message"]["content"] if path == OLLAMA else answer["response"])
    return str(answer["content"][0]["text"])


@pytest.mark.parametrize(("path", "body", "expected"), [case[1:] for case in SHOWN], ids=[case[0] for case in SHOWN])
def test_a_picture_arrives(server: Server, path: str, body: dict[str, Any], expected: str) -> None:
    answer = server.post(path, {"model": "seer", **body})
    assert answer.status == 200, answer.body
    assert text_of(path, answer.json()) == expected
    assert "x-onecard-ignored" not in answer.headers


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("an address", CHAT, chat(image("https://127.0.0.1:1/a.png")), "messages[0].content[0].image_url.url"),
    ("a file", CHAT, chat(image("file:///etc/passwd")), "messages[0].content[0].image_url.url"),
    ("no base64", CHAT, chat(image("data:image/png,abc")), "messages[0].content[0].image_url.url"),
    ("broken base64", CHAT, chat(image(URL[:-1])), "messages[0].content[0].image_url.url"),
    ("base64 with a space", CHAT, chat(image(URL[:40] + " " + URL[40:])), "messages[0].content[0].image_url.url"),
    ("base64 of others", CHAT, chat(image(URL[:40] + "\u00e4" + URL[40:])), "messages[0].content[0].image_url.url"),
    ("nothing", CHAT, chat(image("data:image/png;base64,")), "messages[0].content[0].image_url.url"),
    ("a text", CHAT, chat(image(f"data:text/plain;base64,{BASE64}")), "messages[0].content[0].image_url.url"),
    ("a number", CHAT, chat(image(7)), "messages[0].content[0].image_url.url"),
    ("no field", CHAT, chat({"type": "image_url"}), "messages[0].content[0].image_url"),
    ("another detail", CHAT, chat(image(URL, detail="closer")), "messages[0].content[0].detail"),
    ("what is no picture", CHAT, chat(image("data:image/png;base64,AAAA")), "messages"),
    ("a sound", CHAT, chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), ""),
    ("a kept file", RESPONSES, response({"type": "input_image", "file_id": "f"}), "input[0].content[0].image_url"),
    ("an address", RESPONSES, response({"type": "input_image", "image_url": "http://a/b"}), ""),
    ("an address", MESSAGES, message({"type": "image", "source": {"type": "url", "url": "http://a/b"}}), ""),
    ("broken base64", MESSAGES, message(block(data="A")), "messages.0.content.0.source.data"),
    ("another type", MESSAGES, message(block(media_type="text/html")), "messages.0.content.0.source.data"),
    ("broken base64", OLLAMA, images("A"), "messages[0].images"),
    ("broken base64", TEXT, {"prompt": "x", "images": ["A"]}, "images"),
    ("no source", MESSAGES, message({"type": "image"}), "messages.0.content.0.source"),
]


@pytest.mark.parametrize(
    ("path", "body", "param"), [case[1:] for case in WRONG], ids=[f"{case[0]} on {case[1]}" for case in WRONG]
)
def test_what_is_none_is_refused_where_it_stands(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(path, {"model": "seer", **body})
    assert answer.status == 400, answer.body
    if path != MESSAGES and param:
        assert answer.error["param"] == param
    elif param:
        assert param.rpartition(".")[2] in answer.error["message"], answer.body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(image(URL))),
        (RESPONSES, response({"type": "input_image", "image_url": URL})),
        (MESSAGES, message(block())),
        (f"{MESSAGES}/count_tokens", {"messages": message(block())["messages"]}),
        ("/tokenize", chat(image(URL))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_does_not_see_says_so_before_any_load(server: Server, path: str, body: dict[str, Any]) -> None:
    loads = server.get("/v1/events?last=1000").body.count(b"blind")
    answer = server.post(path, {"model": "blind", **body})
    assert answer.status == 400, answer.body
    assert "takes no parts of type image" in answer.error["message"]
    assert "name a model that does: seer" in answer.error["message"]
    assert server.model("blind")["state"] == "unloaded"
    assert server.get("/v1/events?last=1000").body.count(b"blind") == loads


SHOWN_BEFORE: list[tuple[str, str, dict[str, Any]]] = [
    (
        "by a tool",
        CHAT,
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": [image(URL), LOOK]},
            ]
        },
    ),
    (
        "in an earlier turn",
        RESPONSES,
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": URL}]},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "b"},
            ]
        },
    ),
    (
        "as a tool's result",
        MESSAGES,
        {
            "max_tokens": 99,
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [block()]}]},
            ],
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), [case[1:] for case in SHOWN_BEFORE], ids=[case[0] for case in SHOWN_BEFORE])
def test_a_session_goes_on_without_what_its_model_cannot_see(server: Server, path: str, body: dict[str, Any]) -> None:
    answer = server.post(path, {"model": "blind", **body})
    assert answer.status == 200, answer.body
    assert answer.headers["x-onecard-not-shown"] == "1 image"


def test_pictures_together_are_bounded(server: Server) -> None:
    many = [{"type": "image_url", "image_url": URL}] * 257
    answer = server.post(CHAT, {"model": "seer", **chat(*many)})
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert "257 images and sounds" in answer.error["message"]


def test_a_conversation_goes_on_with_its_picture(server: Server) -> None:
    picture = {"type": "input_image", "image_url": URL, "detail": "low"}
    first = server.post(RESPONSES, {"model": "seer", **response(picture)}).json()
    listed = server.get(f"{RESPONSES}/{first['id']}/input_items").json()["data"]
    assert listed[0]["content"] == [picture]
    more = {"model": "seer", "input": "and now?", "previous_response_id": first["id"]}
    answer = server.post(RESPONSES, more).json()
    assert text_of(RESPONSES, answer).startswith(f"user: {seen('low')} / assistant:")


def test_a_picture_is_counted(server: Server) -> None:
    body = {"model": "seer", "messages": message(block())["messages"]}
    answer = server.post(f"{MESSAGES}/count_tokens", body)
    assert answer.status == 200, answer.body
    assert answer.json()["input_tokens"] > len(seen())
