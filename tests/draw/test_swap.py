"""A chat that makes way for an image and comes back, and a mixture of both under a budget with room for one."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.server import until
from tests.http.conftest import Answer, Server

TURNS = [
    {"role": role, "content": text}
    for city in ("France", "Italy", "Spain", "Norway", "Greece", "Japan", "Egypt", "Peru")
    for role, text in (("user", f"What is the capital of {city}?"), ("assistant", "I will tell you in a moment."))
]


def chat(server: Server, question: str) -> Answer:
    messages = [*TURNS, {"role": "user", "content": question}]
    body = {"model": "chat", "messages": messages, "max_tokens": 8, "temperature": 0}
    return server.post("/v1/chat/completions", body, timeout=300)


def draw(server: Server, **fields: Any) -> Answer:
    body = {"model": "artist", "prompt": "a green background", "size": "64x64", "steps": 2, **fields}
    return server.post("/v1/images/generations", body, timeout=300)


def test_a_chat_comes_back_with_what_it_has_computed(server: Server) -> None:
    """Given a chat that was evicted for an image, when it goes on, then less than 64 tokens are computed again."""
    first = chat(server, "What is 2 + 3?").json()
    assert first["usage"]["prompt_tokens"] > 150
    assert draw(server).status == 200
    until(lambda: server.model("chat")["state"] == "unloaded", 30)
    again = chat(server, "What is 2 + 3?").json()
    usage = again["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 64
    assert again["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]


def test_chats_and_images_take_turns(server: Server, full_counts: bool) -> None:
    """Given requests of both kinds at once, in no order, and room for one model, then none fails and all are told."""
    chance, n_requests = random.Random(5), 300 if full_counts else 12
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(draw, server, seed=i) if chance.random() < 0.5 else pool.submit(chat, server, f"Say {i}.")
            for i in range(n_requests)
        ]
        answers = [one.result() for one in asked]
    assert [answer.body for answer in answers if answer.status != 200] == []
    n_images = sum("data" in answer.json() for answer in answers)
    assert 0 < n_images < sum("data" in answer.json() or "choices" in answer.json() for answer in answers) == n_requests
