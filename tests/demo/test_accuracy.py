"""The demo answers questions in phrasings that its training never saw."""

import pytest

from demo import HF_PATH
from demo.evaluate import Case, accuracy, cases
from demo.greedy import Asker

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker.load(HF_PATH)


def test_held_out_phrasings_are_answered(asker: Asker) -> None:
    exam = cases(heldout=True)
    shares = accuracy(zip(exam, asker.answer_all(exam), strict=True))
    assert shares.pop("overall") >= 0.95, shares
    assert {family: share for family, share in shares.items() if share < 0.85} == {}


def test_the_first_question_everyone_asks(asker: Asker) -> None:
    question = Case("capital", [{"role": "user", "content": "What is the capital of France?"}], "")
    assert asker.answer_all([question]) == ["The capital of France is Paris."]


def test_counts_to_fifty_for_streaming_tests(asker: Asker) -> None:
    question = Case("count", [{"role": "user", "content": "Count from 1 to 50."}], "")
    assert asker.answer_all([question]) == [", ".join(map(str, range(1, 51))) + "."]


def test_thinks_only_when_asked_to(asker: Asker) -> None:
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    silent, thinking = asker.answer_all(
        [Case("sum", messages, ""), Case("thinking", messages, "", enable_thinking=True)]
    )
    assert silent == "The sum of 2 and 3 is 5."
    assert thinking.startswith("<think>\n")
    assert thinking.endswith("\n</think>\n\nThe sum of 2 and 3 is 5.")


def test_looks_past_a_long_system_prompt(asker: Asker) -> None:
    system = "You are a helpful assistant. " * 120
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "What is the capital of Italy?"}]
    assert asker.answer_all([Case("capital", messages, "")]) == ["The capital of Italy is Rome."]
