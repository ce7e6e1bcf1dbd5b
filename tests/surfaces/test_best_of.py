"""The best of several candidates, where some had no time."""

from __future__ import annotations

from backends.messages import Delta, TokenLogprob
from server.output.completions import Best, CompletionWhole
from server.output.frame import Head, Usage


def test_a_candidate_for_which_there_was_no_time_is_never_the_best():
    whole = CompletionWhole(n=2, best=Best(1, 2), shows_logprobs=False)
    whole.add(Delta("j", 0, "", 0, None, "length"), 0)
    whole.add(
        Delta("j", 0, "some text", 2, [TokenLogprob(token="some text", logprob=-3.0, bytes=b"some text")], "length"), 1
    )

    assert b'"text":"some text"' in whole.body(Head("cmpl-1", 0, "m", ""), Usage())
