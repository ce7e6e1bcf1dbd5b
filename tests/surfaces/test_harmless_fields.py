"""Fields that change no answer: what the published APIs allow is served, and anything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from server.routes.table import SURFACES
from server.schemas.surface import Use

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "fake", "prompt": "hi"},
    "/v1/responses": {"model": "fake", "input": "hi"},
    "/v1/messages": {"model": "fake", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"model": "fake", "input": "hi"},
    "/v1/rerank": {"model": "fake", "query": "hi", "documents": ["a"]},
}
TEXTS = ([7, True, ["x"], {}], ["", "x", "x" * 5000, None])
METADATA = (
    [7, "x", [], {"k": 1}, {"k": None}, {"k": "v" * 16384}, {str(i): "v" for i in range(5000)}],
    [{}, {"k" * 65: "v" * 16000}, {str(i): "" for i in range(1000)}, None],
)
TIERS = ["auto", "default", "flex", "scale", "priority", "fast", None]
CACHE = {
    "user": TEXTS,
    "prompt_cache_key": TEXTS,
    "safety_identifier": TEXTS,
    "prompt_cache_retention": (["1h", 24, {}], ["in_memory", "in-memory", "24h", None]),
    "prompt_cache_options": (
        ["x", [], {"mode": "often"}, {"ttl": "1h"}, {"ttl": 30}],
        [{}, {"mode": "implicit"}, {"mode": "explicit", "ttl": "30m"}, None],
    ),
}
WRONG_AND_RIGHT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **CACHE,
        "metadata": METADATA,
        "store": (["yes", 1, {}], [True, False, None]),
        "service_tier": (["ultrafast", "gold", 7, ["auto"]], TIERS),
    },
    "/v1/completions": {"user": TEXTS},
    "/v1/responses": {
        **CACHE,
        "metadata": METADATA,
        "service_tier": (["gold", 7], [*TIERS, "ultrafast"]),
        "stream_options": (["x", [], {"include_obfuscation": "no"}], [{}, {"include_obfuscation": False}, None]),
        "max_tool_calls": (["3", 1.5, True], [3, None]),
        "image": (["x", {"context_compression": "some"}], [{}, {"context_compression": "auto"}, None]),
        "access_programs": (["x", {"cyber": "all"}], [{}, {"cyber": "standard"}, None]),
        "client_metadata": (["x", [], 7], [{}, {"x": "y"}, None]),
    },
    "/v1/messages": {
        "metadata": (["x", [], {"user_id": 7}], [{}, {"user_id": "x" * 300}, {"user_id": None}, None]),
        "service_tier": (["priority", 7], ["auto", "standard_only", None]),
        "cache_control": (["x", {}, {"type": "forever"}, {"type": "ephemeral", "ttl": "2h"}], [{"type": "ephemeral"}]),
        "diagnostics": (["x", 7], [{}, {"previous_message_id": None}, None]),
        "speed": (["slow", 7], ["standard", "fast", None]),
        "inference_geo": ([7, {}], ["eu", None]),
        "user_profile_id": ([7], ["u", None]),
        "workspace_id": ([7], ["w", None]),
        "betas": (["x", [7]], [[], ["files-api"], None]),
        "billing_policy": (["x", {}, {"type": "billing_policy", "bill_to": "you"}], [{"type": "billing_policy"}, None]),
        "fallbacks": (["x", [{}], [7]], [[{"model": "other"}], "default", None]),
        "fallback_credit_token": ([7, {}], ["t", {"token": "t"}, None]),
    },
    "/v1/embeddings": {"user": TEXTS},
    "/v1/rerank": {"user": TEXTS},
}


def test_every_such_field_is_in_this_table():
    for surface in SURFACES:
        if surface.path in WRONG_AND_RIGHT:
            harmless = {name for name, use in surface.fields.items() if use is Use.HARMLESS}
            tried = set(WRONG_AND_RIGHT[surface.path])
            assert harmless <= tried <= set(surface.fields)


CASES = [
    pytest.param(path, name, value, i, id=f"{path} {name} {('wrong', 'right')[i]} {number}")
    for path, fields in WRONG_AND_RIGHT.items()
    for name, both in fields.items()
    for i, values in enumerate(both)
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("path", "name", "value", "is_right"), CASES)
def test_a_value_is_served_where_it_is_right_and_refused_by_name_where_it_is_not(server, path, name, value, is_right):
    answer = server.post(path, {**BODIES[path], name: value})

    if is_right:
        assert answer.status == 200, answer
        assert name not in answer.headers.get("x-onecard-ignored", "")
    else:
        assert answer.status == 400, answer
        assert answer.error["param"].partition(".")[0].partition("[")[0] == name
