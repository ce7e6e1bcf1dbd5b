"""Decides when the server is told what an engine has done: at once, or with the next step where steps are quick.

Every message wakes the server and its client, and that takes a core from the engine; a small model makes a message in
2 ms. So plain text of quick steps waits for more, for one frame of a display at most. A start, the first text of a
choice, an end, and steps that compute a prompt go at once, and take along what waits. Pure: time is an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from backends.messages import Delta, Failed, Finished, Part, Started, Step

if TYPE_CHECKING:
    from backends.messages import Event, TokenLogprob

FRAME_S: Final = 1 / 60
"""The longest that text waits, in seconds: one frame of a 60 Hz display."""


class Outbox:
    """What a worker has not told the server yet."""

    def __init__(self) -> None:
        self._waiting: list[Step] = []
        self._since = 0.0
        """When the oldest of them was made."""
        self._last = 0.0
        self._flowing: dict[str, set[int]] = {}
        """Choices by job whose first text was taken in: later text of theirs may wait."""

    def put(self, step: Step, now: float, *, idle: bool) -> Step | None:
        """Take in a step that ended at `now` seconds; the message to send, None where it waits. `idle`: none follows.

        A step as long as this one must fit into the frame of the oldest text, else that would come late.
        """
        took_s, self._last = now - self._last, now
        patient = self._may_wait(step) and not idle
        if not self._waiting:
            self._since = now
        self._waiting.append(step)
        if patient and now + took_s - self._since <= FRAME_S:
            return None
        return self.flush()

    def flush(self) -> Step | None:
        """Everything that waits, as one message; None when nothing does."""
        if not self._waiting:
            return None
        told = self._waiting[0] if len(self._waiting) == 1 else _joined(self._waiting)
        self._waiting.clear()
        return told

    def _may_wait(self, step: Step) -> bool:
        """Whether it holds only more text of choices that flow already; notes what begins and ends."""
        plain = not step.n_prefill
        for event in step.events:
            match event:
                case Delta():
                    flowing = self._flowing.setdefault(event.id, set())
                    plain = plain and event.finish_reason is None and event.index in flowing
                    flowing.add(event.index)
                case Finished() | Failed():
                    plain = False
                    self._flowing.pop(event.id, None)
                case Started() | Part():
                    plain = False
                case _:
                    assert_never(event)
        return plain


def _joined(steps: list[Step]) -> Step:
    """Several steps as one, with the text of each choice in one piece."""
    events: list[Event] = []
    texts: dict[tuple[str, int], list[Delta]] = {}
    for step in steps:
        for event in step.events:
            if not isinstance(event, Delta):
                events.append(event)
            elif (event.id, event.index) in texts:
                texts[event.id, event.index].append(event)
            else:
                texts[event.id, event.index] = [event]
    return msgspec.structs.replace(
        steps[-1],
        events=[_one(deltas) for deltas in texts.values()] + events,
        n_decode=sum(step.n_decode for step in steps),
        n_prefill=sum(step.n_prefill for step in steps),
        n_inputs=sum(step.n_inputs for step in steps),
        duration_us=sum(step.duration_us for step in steps),
        batches=[step.n_decode + step.n_inputs for step in steps],
        drafted=_summed(steps),
    )


def _summed(steps: list[Step]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for drafter, (n_drafted, n_accepted) in (item for step in steps for item in step.drafted.items()):
        before = found.get(drafter, (0, 0))
        found[drafter] = (before[0] + n_drafted, before[1] + n_accepted)
    return found


def _one(deltas: list[Delta]) -> Delta:
    """Neighbouring text of one choice as one piece; what ends it stands on the last."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs: list[TokenLogprob] | None = None
    for delta in deltas:
        if delta.logprobs is not None:
            logprobs = [*(logprobs or []), *delta.logprobs]
    return msgspec.structs.replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        n_tokens=sum(delta.n_tokens for delta in deltas),
        logprobs=logprobs,
    )
