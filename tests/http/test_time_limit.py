"""At the time limit an answer ends as at `max_tokens`, with what there is of it; only one without a word fails."""

from __future__ import annotations

import pytest

from tests.http.conftest import Server, settings
from tests.present import present

LIMIT_S = 2.0
LONG = "!slow 20 5000"
NEVER = "!prepare 2200"
"""The next request waits for the rest of it, so these are asked last."""


@pytest.fixture(scope="module")
def server(canary_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limited")
    running = Server(settings(canary_path, request_timeout_s=LIMIT_S), folder / "server.log")
    yield running
    running.process.kill()
    running.process.wait()
    present(running.process.stdout).close()


def bodies(text: str) -> dict[str, dict]:
    user = [{"role": "user", "content": text}]
    return {
        "/v1/chat/completions": {"model": "fake", "messages": user},
        "/v1/completions": {"model": "fake", "prompt": text, "max_tokens": 9999},
        "/v1/responses": {"model": "fake", "input": text},
        "/v1/messages": {"model": "fake", "messages": user, "max_tokens": 9999},
        "/infill": {"model": "fake", "input_prefix": f"{text} ", "input_suffix": ""},
    }


def ending(path: str, answer: dict) -> tuple[str, str]:
    """The text, and how the surface says that a limit has ended it."""
    match path:
        case "/v1/chat/completions":
            (choice,) = answer["choices"]
            return choice["message"]["content"], choice["finish_reason"]
        case "/v1/completions":
            (choice,) = answer["choices"]
            return choice["text"], choice["finish_reason"]
        case "/v1/responses":
            (part,) = answer["output"][0]["content"]
            return part["text"], f"{answer['status']} {answer['incomplete_details']['reason']}"
        case "/v1/messages":
            return answer["content"][0]["text"], answer["stop_reason"]
    return answer["content"], answer["stop_type"]


ENDS = {
    "/v1/chat/completions": ("length", b'"finish_reason":"length"'),
    "/v1/completions": ("length", b'"finish_reason":"length"'),
    "/v1/responses": ("incomplete max_output_tokens", b"event: response.incomplete"),
    "/v1/messages": ("max_tokens", b'"stop_reason":"max_tokens"'),
}


@pytest.mark.parametrize("path", ENDS)
def test_what_was_generated_within_the_limit_is_the_answer(server, path):
    whole = server.post(path, bodies(LONG)[path])
    streamed = server.post(path, {**bodies(LONG)[path], "stream": True})

    assert (whole.status, streamed.status) == (200, 200)
    text, how = ending(path, whole.json())
    assert text.startswith("0")
    assert how == ENDS[path][0]
    assert ENDS[path][1] in streamed.body
    assert b'"error":{' not in streamed.body


@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_for_which_no_time_was_left_do_not_cost_the_others_theirs(server, streamed):
    prompts = [LONG, LONG, LONG, LONG, LONG, LONG]
    answer = server.post("/v1/completions", {**bodies("")["/v1/completions"], "prompt": prompts, "stream": streamed})

    assert answer.status == 200, answer
    if not streamed:
        choices = answer.json()["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["length"] * 6
        assert choices[0]["text"].startswith("0")
        assert any(not choice["text"] for choice in choices), "more than run at once"
    assert answer.body.count(b'"finish_reason":"length"') == 6


@pytest.mark.parametrize("path", ENDS)
def test_a_request_that_has_generated_nothing_fails(server, path):
    answer = server.post(path, bodies(NEVER)[path])
    assert (answer.status, answer.error["code"]) == (500, "request_timeout")
