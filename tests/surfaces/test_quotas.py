"""What one provider allows its own customers is no bound here: that is what guards the server."""

from __future__ import annotations

from typing import Any

import pytest

USER = [{"role": "user", "content": "hi"}]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": USER},
    "/v1/completions": {"model": "fake", "prompt": "hi"},
    "/v1/responses": {"model": "fake", "input": "hi"},
    "/v1/messages": {"model": "fake", "max_tokens": 5, "messages": USER},
    "/infill": {"model": "fake", "input_prefix": "a", "input_suffix": "b"},
}
STOP = {path: "stop_sequences" if path == "/v1/messages" else "stop" for path in BASES}
MANY = [
    [f"<stop {i}>" for i in range(64)],
    ["x" * 2048, "y" * 2048],
    ["x" * 4096],
]
TOO_MANY = [[f"<stop {i}>" for i in range(65)], ["x" * 2048, "y" * 2049], ["\u20ac" * 1366]]


def tools(n: int, name: str = "tool_{}") -> list[dict]:
    return [{"type": "function", "function": {"name": name.format(i), "parameters": {}}} for i in range(n)]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize("stops", MANY, ids=range(len(MANY)))
def test_as_many_stop_strings_as_one_answer_may_need_are_taken_on_every_surface(server, path, stops, streamed):
    assert server.post(path, {**BASES[path], STOP[path]: stops, "stream": streamed}).status == 200


@pytest.mark.parametrize("path", BASES)
@pytest.mark.parametrize("stops", TOO_MANY, ids=range(len(TOO_MANY)))
def test_more_than_64_or_4_kib_of_them_are_refused_by_name(server, path, stops):
    answer = server.post(path, {**BASES[path], STOP[path]: stops})
    assert answer.status == 400
    assert answer.error["param"] == STOP[path]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": tools(129)},
        {"tools": tools(2, "mcp_" + "x" * 200 + "_{}")},
        {"metadata": {f"key {i} {'x' * 64}": "v" for i in range(17)}},
        {"safety_identifier": "u" * 65},
    ],
    ids=["tools", "a tool's name", "metadata", "safety_identifier"],
)
def test_other_quotas_are_no_bounds_either(server, fields):
    assert server.post("/v1/chat/completions", {**BASES["/v1/chat/completions"], **fields}).status == 200
