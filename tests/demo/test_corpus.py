"""The corpus: the same for the same seed, and innocent of the held-out phrasings."""

from demo.corpus import examples
from demo.evaluate import cases, score
from demo.phrasings import FOLLOW_UPS, HELD_OUT, HELD_OUT_FOLLOW_UPS, TRAIN


def plain(phrasing: str) -> str:
    return phrasing.lower().strip("?.! ")


def test_the_same_seed_gives_the_same_chats() -> None:
    assert list(examples(5, 50)) == list(examples(5, 50))
    assert list(examples(5, 50)) != list(examples(6, 50))


def test_no_held_out_phrasing_is_trained_on() -> None:
    trained = {plain(p) for source in (TRAIN, FOLLOW_UPS) for family in source.values() for p in family}
    held_out = {plain(p) for source in (HELD_OUT, HELD_OUT_FOLLOW_UPS) for family in source.values() for p in family}
    assert trained & held_out == set()
    assert TRAIN.keys() == HELD_OUT.keys()
    assert FOLLOW_UPS.keys() == HELD_OUT_FOLLOW_UPS.keys()


def test_every_training_chat_ends_with_what_the_client_says() -> None:
    for example in examples(5, 300):
        assert example.messages[-1]["role"] in ("user", "tool")
        assert example.completion.startswith("<think>") == example.enable_thinking


def test_the_expected_answer_scores_and_another_does_not() -> None:
    for case in cases(n_per_family=2):
        assert score(case, case.expected)
        assert score(case, f"<think>\nHm.\n</think>\n\n{case.expected}")
        assert not score(case, "Something else.")
