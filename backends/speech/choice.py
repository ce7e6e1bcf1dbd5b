"""Which token comes next in each row of a batch, and how likely it was. What may come is `rules`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from backends.speech import rules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.speech.tokens import Tokens

_NEVER: Final = float("-inf")


@dataclass(frozen=True)
class Row:
    """What one window's text begins with, and how its tokens are chosen."""

    prompt: list[int]
    opening: list[int]
    temperature: float


class Chooser:
    """Of one model: its suppressed tokens are banned everywhere, those `at_begin` at the first place too."""

    def __init__(
        self, tokens: Tokens, suppressed: Sequence[int], at_begin: Sequence[int], *, device: torch.device
    ) -> None:
        self._tokens = tokens
        self._banned = _marks({*suppressed}, tokens.n_vocab, device)
        self._banned_first = _marks({*suppressed, *at_begin}, tokens.n_vocab, device)

    @torch.inference_mode()
    def choose(
        self, logits: torch.Tensor, ids: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """`(n, vocab)` logits, which are written to, behind each row's `ids`: a token and its log-probability each.

        A time comes where all times together are likelier than the likeliest word.
        """
        first_time = self._tokens.first_time
        logits += self._banned if any(ids) else self._banned_first
        for row, one in enumerate(ids):
            for begin, end in rules.allowed(one, self._tokens).banned:
                logits[row, begin:end] = _NEVER
        words, times = logits[:, :first_time], logits[:, first_time:]
        (best_word, word), time = words.max(dim=-1), times.argmax(dim=-1)
        all_words, all_times = torch.logsumexp(words, dim=-1), torch.logsumexp(times, dim=-1)
        is_time = all_times > best_word
        chosen = torch.where(is_time, time + first_time, word)
        whole = torch.where(is_time, all_times, torch.logaddexp(all_words, all_times))
        for row, temperature in enumerate(temperatures):
            if temperature > 0:
                chosen[row] = _sampled(logits[row], first_time if is_time[row] else 0, temperature)
        picked = logits.gather(1, chosen[:, None])[:, 0]
        return chosen.tolist(), (picked - whole).tolist()


def _sampled(logits: torch.Tensor, first: int, temperature: float) -> torch.Tensor:
    """One of the tokens from `first` on."""
    return torch.multinomial(torch.softmax(logits[first:] / temperature, dim=-1), 1)[0] + first


def _marks(banned: set[int], n_vocab: int, device: torch.device) -> torch.Tensor:
    """`(vocab,)`: what is added to logits."""
    marks = torch.zeros(n_vocab, device=device)
    marks[sorted(banned)] = _NEVER
    return marks
