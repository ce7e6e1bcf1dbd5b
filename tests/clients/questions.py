"""What every client asks the demo model, and what it has to answer."""

from __future__ import annotations

import os

MODEL = os.environ["ONECARD_MODEL"]
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
WEATHER = "What is the weather in Paris?"
REPORT = '{"condition": "sunny", "temperature": 21}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


def check(answer: dict) -> None:
    """Whether an answer has the schema's shape."""
    assert answer.keys() == {"city", "large"}, answer
    assert isinstance(answer["city"], str), answer
    assert isinstance(answer["large"], bool), answer


def done(step: str) -> None:
    print(f"ok {step}", flush=True)
