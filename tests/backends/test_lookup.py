"""What text lookup drafts: the way a text went on before, over a change, and from a prediction."""

from __future__ import annotations

from backends.generation.lookup import BORDER, MOST_KNOWN, TextLookup


def said(lookup: TextLookup, tokens: list[int]) -> list[bool | None]:
    return [lookup.follow(token) for token in tokens]


def test_text_that_repeats_its_prompt_is_drafted_from_it() -> None:
    lookup = TextLookup([1, 2, 3, 4, 5, 6, 7, 8, 9])

    said(lookup, [50, 3, 4, 5])

    assert lookup.draft(3) == [6, 7, 8]
    assert lookup.matched == 3


def test_what_was_said_itself_is_drafted_again_and_as_far_as_it_goes() -> None:
    lookup = TextLookup([1])

    said(lookup, [10, 11, 12, 13, 10, 11, 12])

    assert lookup.draft(9) == [13, 10, 11, 12]


def test_nothing_is_drafted_for_text_that_never_stood_there() -> None:
    lookup = TextLookup([1, 2, 3, 4])

    assert said(lookup, [20, 21, 22, 23]) == [None] * 4
    assert lookup.draft(8) == []


def test_a_changed_token_in_a_copy_loses_one_token_and_not_the_way() -> None:
    text = list(range(100, 140))
    lookup = TextLookup(text)

    said(lookup, text[:10])
    hits = said(lookup, [7, *text[11:20]])

    assert hits == [False, *[True] * 9]


def test_tokens_put_in_or_left_out_of_a_copy_are_found_behind() -> None:
    text = list(range(100, 160))
    lookup = TextLookup(text)

    said(lookup, text[:10])
    inserted = said(lookup, [7, 8, 9, *text[10:20]])
    left_out = said(lookup, text[24:34])

    assert inserted[-8:] == [True] * 8
    assert left_out[-8:] == [True] * 8


def test_a_prediction_is_drafted_from_the_first_token_on_and_counted() -> None:
    lookup = TextLookup([1, 2, 3], [30, 31, 32, 33])

    assert lookup.draft(9) == [30, 31, 32, 33]
    assert lookup.drafter == "prediction"
    assert said(lookup, [30, 31, 9]) == [True, True, False]
    assert lookup.n_foretold == 2


def test_no_draft_goes_on_from_a_prediction_into_the_prompt() -> None:
    lookup = TextLookup([1, 2, 3], [30, 31])

    said(lookup, [30, 31, 1])

    assert lookup.n_foretold == 2
    assert BORDER not in lookup.draft(9)


def test_of_a_very_long_prompt_the_last_part_is_looked_through() -> None:
    text = [place % 1000 + 10 * (place // 1000) for place in range(MOST_KNOWN + 50)]
    lookup = TextLookup([5001, 5002, 5003, *text, 6001, 6002, 6003, 6004])
    said(lookup, [7000 + place for place in range(100)])  # a part of it is taken in with every token

    said(lookup, [6001, 6002])
    assert lookup.draft(2) == [6003, 6004]
    said(lookup, [9, 5001, 5002])
    assert lookup.draft(1) == []


def test_a_cached_text_is_drafted_from_where_the_prompt_has_nothing() -> None:
    lookup = TextLookup([1, 2, 3], cached=[[7, 8, 9, 10], [20, 8, 9, 30]])

    said(lookup, [50, 51, 8, 9])

    assert lookup.draft(4) == [10]
    assert lookup.drafter == "cache"


def test_where_prompt_and_cached_text_have_the_same_words_the_prompt_goes_on() -> None:
    lookup = TextLookup([1, 8, 9, 11, 12], cached=[[7, 8, 9, 10]])

    said(lookup, [50, 51, 8, 9])

    assert lookup.draft(4) == [11, 12, 50, 51]
    assert lookup.drafter == "ngram"


def test_nothing_of_one_cached_text_goes_on_in_the_next() -> None:
    lookup = TextLookup([1], [40, 41], [[7, 8, 9], [20, 21, 22]])

    said(lookup, [50, 51, 52, 7, 8])

    assert lookup.draft(4) == [9]
    assert BORDER not in lookup.draft(9)
