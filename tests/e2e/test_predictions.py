"""OpenAI's predicted outputs: a draft that changes no answer, and is counted."""

from __future__ import annotations

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.engine

ASKED: Any = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


def test_a_prediction_changes_no_answer_and_what_came_of_it_is_counted(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**ASKED, temperature=0)
    text = plain.choices[0].message.content or ""
    half = text[: len(text) // 2] + " nothing of that kind at all"

    expected: list[tuple[Any, str]] = [
        (text, "all"),
        (half, "some"),
        ([{"type": "text", "text": text}], "all"),
        ("Zebras", "none"),
    ]
    for content, comes in expected:
        predicted: Any = {"type": "content", "content": content}
        told = client.chat.completions.create(**ASKED, temperature=0, prediction=predicted)
        assert told.choices[0].message.content == text
        assert told.usage is not None
        assert plain.usage is not None
        assert told.usage.completion_tokens == plain.usage.completion_tokens
        details: Any = told.usage.completion_tokens_details
        accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens
        assert (accepted > 0, rejected > 0) == {"all": (True, False), "some": (True, True), "none": (False, True)}[
            comes
        ]


def test_a_request_without_drafts_counts_none(client: openai.OpenAI) -> None:
    predicted: Any = {"type": "content", "content": "The capital of France is Paris."}
    told = client.chat.completions.create(
        **ASKED, temperature=0, prediction=predicted, extra_body={"speculation": "off"}, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip

    *_, last = told
    assert last.usage is not None
    details: Any = last.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    ["x", {}, {"type": "content"}, {"type": "text", "content": "x"}]
    + [{"type": "content", "content": content} for content in (None, 7, [], [7], [{"type": "image_url"}])],
)
def test_a_prediction_that_is_none_is_refused(client: openai.OpenAI, wrong: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED, extra_body={"prediction": wrong})

    assert (caught.value.param or "").startswith("prediction")
