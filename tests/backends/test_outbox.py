"""Quick steps travel together, for one frame of a display at most; whatever is no mere text goes at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.border.outbox import FRAME_S, Outbox
from backends.messages import Delta, Failed, Finished, Started, Step, TokenLogprob

QUICK_S = FRAME_S / 8


def text(words: str, *, job: str = "a", index: int = 0, n_tokens: int = 1, **more) -> Delta:
    return Delta(id=job, index=index, text=words, n_tokens=n_tokens, **more)


def flowing(*jobs: str) -> tuple[Outbox, float]:
    """An outbox whose jobs have all said something, and the time of it."""
    outbox = Outbox()
    now = 0.0
    for job in jobs:
        now += QUICK_S
        assert outbox.put(Step(events=[text("first", job=job)]), now, idle=False) is not None
    return outbox, now


def test_the_start_and_the_first_text_of_each_choice_go_at_once():
    outbox = Outbox()

    assert outbox.put(Step(events=[Started(id="a", prompt_tokens=3)]), QUICK_S, idle=False)
    assert outbox.put(Step(events=[text("one")], n_decode=1), 2 * QUICK_S, idle=False)
    assert outbox.put(Step(events=[text("uno", index=1)], n_decode=1), 3 * QUICK_S, idle=False)


def test_text_of_quick_steps_travels_in_one_piece_and_never_later_than_a_frame():
    outbox, now = flowing("a")
    made_at: list[float] = []
    told: list[Step] = []
    for _ in range(40):
        now += QUICK_S
        made_at.append(now)
        step = outbox.put(Step(events=[text("x")], n_decode=1, duration_us=100), now, idle=False)
        if step is not None:
            told.append(step)
            assert now - made_at[0] <= FRAME_S
            assert step.batches == [1] * len(made_at)
            assert step.n_decode == len(made_at)
            assert step.duration_us == 100 * len(made_at)
            assert step.events == [text("x" * len(made_at), n_tokens=len(made_at))]
            made_at.clear()

    assert 3 <= len(told) <= 6


def test_a_step_as_long_as_a_frame_is_told_at_once():
    outbox, now = flowing("a")

    assert outbox.put(Step(events=[text("x")], n_decode=1), now + FRAME_S * 1.01, idle=False) is not None


def test_an_engine_without_work_keeps_nothing():
    outbox, now = flowing("a")

    assert outbox.put(Step(events=[text("x")], n_decode=1), now + QUICK_S, idle=True) is not None
    assert outbox.flush() is None


def test_steps_of_inputs_that_give_nothing_yet_are_counted_when_they_travel():
    outbox = Outbox()
    assert outbox.put(Step(n_inputs=2, duration_us=5), QUICK_S, idle=False) is None

    told = outbox.put(Step(events=[Finished(id="a")], n_inputs=1, duration_us=5), 2 * QUICK_S, idle=False)

    assert told is not None
    assert (told.n_inputs, told.batches, told.duration_us) == (3, [2, 1], 10)


def test_a_prompt_being_computed_is_told_at_once_and_takes_along_what_waits():
    outbox, now = flowing("a")
    assert outbox.put(Step(events=[text("x")], n_decode=1), now + QUICK_S, idle=False) is None

    told = outbox.put(Step(events=[text("y")], n_decode=1, n_prefill=64), now + 2 * QUICK_S, idle=False)

    assert told is not None
    assert told.events == [text("xy", n_tokens=2)]
    assert told.n_prefill == 64


def test_the_end_of_one_job_takes_along_its_text_and_that_of_the_others():
    outbox, now = flowing("a", "b")
    assert outbox.put(Step(events=[text("x"), text("y", job="b")], n_decode=2), now + QUICK_S, idle=False) is None

    last = text("z", finish_reason="stop", stop="!")
    told = outbox.put(
        Step(events=[last, Finished(id="a"), text("w", job="b")], n_decode=2), now + 1.5 * QUICK_S, idle=False
    )

    assert told is not None
    assert told.events == [
        text("xz", n_tokens=2, finish_reason="stop", stop="!"),
        text("yw", job="b", n_tokens=2),
        Finished(id="a"),
    ]


def test_logprobs_are_joined_in_order():
    outbox, now = flowing("a")
    first, second = (TokenLogprob(token=t, logprob=-1.0, bytes=t.encode()) for t in "xy")
    assert outbox.put(Step(events=[text("x", logprobs=[first])]), now + QUICK_S, idle=False) is None
    assert outbox.put(Step(events=[text("y", logprobs=[second])]), now + 2 * QUICK_S, idle=False) is None

    told = outbox.flush()

    assert told is not None
    assert told.events == [text("xy", n_tokens=2, logprobs=[first, second])]


EVENTS = st.one_of(
    st.builds(text, st.text("ab", max_size=2), job=st.sampled_from("pq"), index=st.integers(0, 1)),
    st.builds(Finished, id=st.sampled_from("pq")),
    st.builds(Failed, id=st.sampled_from("pq"), code=st.just("cancelled"), message=st.just("")),
)


@given(st.lists(st.tuples(st.lists(EVENTS, max_size=4), st.floats(0, 2 * FRAME_S), st.booleans()), max_size=30))
def test_no_text_token_or_end_is_lost_or_overtakes_within_its_choice(history):
    outbox, now = Outbox(), 0.0
    told: list[Step] = []
    for events, took_s, idle in history:
        now += took_s
        step = outbox.put(Step(events=events, n_decode=len(events)), now, idle=idle)
        told += [step] if step is not None else []
    rest = outbox.flush()
    told += [rest] if rest is not None else []

    sent = [event for events, _, _ in history for event in events]
    received = [event for step in told for event in step.events]
    for job in "pq":
        assert [e for e in received if not isinstance(e, Delta) and e.id == job] == [
            e for e in sent if not isinstance(e, Delta) and e.id == job
        ]
        for index in (0, 1):
            mine = [
                [e for e in side if isinstance(e, Delta) and (e.id, e.index) == (job, index)]
                for side in (sent, received)
            ]
            assert "".join(e.text for e in mine[0]) == "".join(e.text for e in mine[1])
            assert sum(e.n_tokens for e in mine[0]) == sum(e.n_tokens for e in mine[1])
    assert sum(len(step.batches) or 1 for step in told) == len(history)
    assert sum(step.n_decode for step in told) == len(sent)
