"""Which tokens wrote a piece of an answer."""

from __future__ import annotations

from backends.messages import TokenLogprob
from server.output.content_tokens import ContentTokens


def tokens(*texts: str) -> list[TokenLogprob]:
    return [TokenLogprob(text, -1.0, text.encode()) for text in texts]


def names(found: list[TokenLogprob]) -> list[str]:
    return [token.token for token in found]


def test_marks_and_space_before_a_piece_are_no_part_of_it():
    waiting = ContentTokens()
    waiting.add(tokens("<think>", "\n", "hm", "\n", "</think>", "\n\n", "Par", "is"))

    assert names(waiting.of("hm")) == ["hm"]
    assert names(waiting.of("Paris")) == ["Par", "is"]
    assert waiting.of("") == []


def test_a_piece_may_be_written_over_several_deltas_and_end_inside_a_token():
    waiting = ContentTokens()
    waiting.add(tokens("a", "b <"))
    assert names(waiting.of("ab")) == ["a", "b <"]

    waiting.add(tokens("c"))
    assert names(waiting.of(" <c")) == ["c"], "the token before belongs to the piece that it began with"


def test_the_same_piece_again_has_tokens_of_its_own():
    waiting = ContentTokens()
    waiting.add(tokens("é", " é", " é"))

    assert names(waiting.of("é")) == ["é"]
    assert names(waiting.of(" é")) == [" é"]
    assert names(waiting.of(" é")) == [" é"]
