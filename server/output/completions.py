"""A text completion as clients read it: a stream of objects, or one object.

Pure: deltas in, bytes out.
"""

from __future__ import annotations

import codecs
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from server.output.frame import DONE, Framer, Head, Usage, logprob, to_json

if TYPE_CHECKING:
    from backends.messages import Delta, TokenLogprob


_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class LegacyLogprobs:
    """Log-probabilities of one choice in the shape of text completions; `with_top`: alternatives were asked for."""

    def __init__(self, *, with_top: bool) -> None:
        self._with_top = with_top
        self._decoder = _utf8_decoder("replace")
        self._offset = 0
        """Characters of the text so far."""

    def shaped(self, tokens: list[TokenLogprob]) -> dict[str, Any]:
        """The next tokens; each has the offset of the character in which it begins."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.bytes))
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [logprob(token.logprob) for token in tokens],
            "top_logprobs": [_top(token) for token in tokens] if self._with_top else None,
            "text_offset": offsets,
        }


def _top(token: TokenLogprob) -> dict[str, float | None] | None:
    """The best alternatives; the chosen token is always among them."""
    if token.logprob is None:
        return None
    top = {other.token: logprob(other.logprob) for other in token.top}
    top.setdefault(token.token, logprob(token.logprob))
    return top


class CompletionStream:
    """The events of one streamed text completion."""

    def __init__(self, head: Head, *, include_usage: bool, with_top: bool = False) -> None:
        self._framer = Framer(head, "text_completion", include_usage=include_usage)
        self._include_usage = include_usage
        self._logprobs: defaultdict[int, LegacyLogprobs] = defaultdict(lambda: LegacyLogprobs(with_top=with_top))

    def delta(self, event: Delta, choice: int) -> bytes:
        """The event of one delta; empty where it says nothing."""
        if not event.text and event.finish_reason is None and not event.logprobs:
            return b""
        logprobs = b"null"
        if event.logprobs is not None:
            logprobs = to_json(self._logprobs[choice].shaped(event.logprobs))
        finish = b"null" if event.finish_reason is None else to_json(event.finish_reason)
        return self._framer.frame(
            b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (choice, to_json(event.text), logprobs, finish)
        )

    def end(self, usage: Usage) -> bytes:
        """The usage where it was asked for, and the end mark."""
        return (self._framer.usage(usage) if self._include_usage else b"") + DONE


@dataclass
class _Choice:
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token, by which the best of several is chosen."""
        values = [token.logprob for token in self.logprobs or [] if token.logprob is not None]
        return sum(values) / len(values) if values else 0.0


class Best(NamedTuple):
    """How many of how many candidates of each prompt are delivered."""

    n: int
    of: int

    def chosen(self, choices: list[_Choice]) -> list[_Choice]:
        """The best candidates of each prompt in turn, as OpenAI ranks them: by log-probability per token."""
        if self.n == self.of:
            return choices
        groups = [choices[i : i + self.of] for i in range(0, len(choices), self.of)]
        return [choice for group in groups for choice in sorted(group, key=_by_rank)[: self.n]]


def _by_rank(choice: _Choice) -> tuple[bool, float]:
    """Candidates for which there was no time come last."""
    unbegun = choice.finish_reason == "length" and not choice.logprobs
    return unbegun, -choice.mean_logprob


class CompletionWhole:
    """One text completion collected from its deltas."""

    def __init__(
        self, *, n: int, best: Best | None = None, shows_logprobs: bool = True, with_top: bool = False
    ) -> None:
        self._choices = [_Choice() for _ in range(n)]
        self._best = best or Best(n, n)
        self._shows_logprobs = shows_logprobs
        self._with_top = with_top

    def add(self, event: Delta, choice: int) -> None:
        """More of one choice."""
        entry = self._choices[choice]
        entry.texts.append(event.text)
        if event.logprobs is not None:
            entry.logprobs = entry.logprobs or []
            entry.logprobs += event.logprobs
        entry.finish_reason = event.finish_reason or entry.finish_reason

    def body(self, head: Head, usage: Usage) -> bytes:
        """The whole answer."""
        choices = [
            {
                "index": i,
                "text": "".join(choice.texts),
                "logprobs": self._shown(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(self._best.chosen(self._choices))
        ]
        return to_json({**head.fields("text_completion"), "choices": choices, "usage": usage.as_dict()})

    def _shown(self, logprobs: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if not self._shows_logprobs or logprobs is None:
            return None
        return LegacyLogprobs(with_top=self._with_top).shaped(logprobs)
