"""Whisper as mathematics: sound to features to hidden states to tokens, several windows at a time.

Owns the model's calls. What may come next and what is good enough are `rules`; whose windows they are is the engine's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.speech import rules

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from backends.speech.tokens import Tokens

TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried one after the other until the text is good, as long as there is time."""
_TOKENS_PER_TURN: Final = 16
"""Between two of them other work has its turn, and a cancelled job its end."""
_LEAST_RETRY_S: Final = 2.0
_RETRY_SHARE: Final = 2.0
"""Further tries together take so many times the first, or the least."""


@dataclass(frozen=True)
class Decoded:
    """One window as tokens."""

    ids: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """See `rules.REPEATS`."""
        return rules.compression_ratio(self.text.strip())

    @property
    def is_silence(self) -> bool:
        """Unlikely text over what is likely no speech."""
        return self.no_speech_prob > rules.SILENT and self.avg_logprob < rules.UNLIKELY

    @property
    def is_good(self) -> bool:
        """No higher temperature needs to be tried."""
        return self.is_silence or (self.compression_ratio <= rules.REPEATS and self.avg_logprob >= rules.UNLIKELY)

    def is_better(self, other: Decoded) -> bool:
        """The good before the bad, what does not repeat itself before what does, the likelier first."""
        mine, others = ((one.is_good, one.compression_ratio <= rules.REPEATS, one.avg_logprob) for one in (self, other))
        return mine > others


class Recogniser:
    """A loaded Whisper model."""

    def __init__(
        self, model: Any, extractor: Any, tokens: Tokens, *, suppressed: Sequence[int], at_begin: Sequence[int]
    ) -> None:
        self.tokens = tokens
        self.model = model
        self._extractor = extractor
        self._device = model.device
        self._dtype = model.model.encoder.conv1.weight.dtype
        self._suppressed = torch.tensor(sorted(set(suppressed)), dtype=torch.long, device=self._device)
        self._at_begin = torch.tensor(sorted(set(at_begin)), dtype=torch.long, device=self._device)

    def batches(self, windows: Sequence[NDArray[np.int16]]) -> Iterator[Sequence[NDArray[np.int16]]]:
        """What is encoded at once: all on a card; a processor gains nothing by it."""
        size = len(windows) if self._device.type == "cuda" else 1
        for first in range(0, len(windows), size):
            yield windows[first : first + size]

    @torch.inference_mode()
    def encode(self, windows: Sequence[NDArray[np.int16]]) -> torch.Tensor:
        """`(n, positions, width)` hidden states; shorter windows are filled with silence."""
        sound = [samples.astype(np.float32) / 32768 for samples in windows]
        features = self._extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        hidden: torch.Tensor = self.model.model.encoder(features.to(self._device, self._dtype)).last_hidden_state
        return hidden

    @torch.inference_mode()
    def languages(self, hidden: torch.Tensor) -> list[str]:
        """The likeliest language of each window, by its code."""
        codes = list(self.tokens.languages)
        places = torch.tensor([self.tokens.languages[code] for code in codes], device=self._device)
        start = torch.full((hidden.shape[0], 1), self.tokens.start, device=self._device)
        states = self.model.model.decoder(input_ids=start, encoder_hidden_states=hidden, use_cache=False)
        logits = self.model.proj_out(states.last_hidden_state[:, -1])
        return [codes[int(one)] for one in logits[:, places].argmax(dim=-1)]

    def first_logits(self, hidden: torch.Tensor, opening: list[int]) -> torch.Tensor:
        """`(n, vocab)` behind the opening."""
        openings = [opening] * hidden.shape[0]
        return _State(self.model, hidden, [[] for _ in openings], openings, pad=self.tokens.end).begin(1, None)[0]

    def recognise(
        self,
        hidden: torch.Tensor,
        prompts: Sequence[list[int]],
        openings: Sequence[list[int]],
        temperatures: Sequence[float],
    ) -> Generator[None, None, list[Decoded]]:
        """The text of each window; gives others a turn between. Temperature 0 means that higher ones may be tried."""
        begun = time.perf_counter()
        best = yield from self._decode(hidden, prompts, openings, temperatures)
        first_s = time.perf_counter() - begun
        until = begun + first_s + max(_LEAST_RETRY_S, _RETRY_SHARE * first_s)
        for temperature in TEMPERATURES[1:]:
            again = [row for row, one in enumerate(best) if not one.is_good and temperatures[row] == 0]
            if not again or time.perf_counter() > until:
                break
            rows = torch.tensor(again, device=self._device)
            tried = yield from self._decode(
                hidden[rows], [[] for _ in again], [openings[row] for row in again], [temperature] * len(again)
            )
            for row, one in zip(again, tried, strict=True):
                best[row] = one if one.is_better(best[row]) else best[row]
        return best

    def _decode(
        self,
        hidden: torch.Tensor,
        prompts: Sequence[list[int]],
        openings: Sequence[list[int]],
        temperatures: Sequence[float],
    ) -> Generator[None, None, list[Decoded]]:
        """One try: rows are filled up on the left, and those that have ended wait for the last."""
        n_rows = len(openings)
        state = _State(self.model, hidden, prompts, openings, pad=self.tokens.end)
        logits, quiet = state.begin(len(openings[0]), self.tokens.no_speech)
        ids: list[list[int]] = [[] for _ in range(n_rows)]
        sums, running = [0.0] * n_rows, [True] * n_rows
        for count in range(min(rules.MOST_TOKENS, state.room)):
            chosen, logprobs = self._choose(logits, ids, temperatures, first=count == 0)
            for row in range(n_rows):
                if running[row]:
                    sums[row] += logprobs[row]
                    running[row] = chosen[row] != self.tokens.end
                    if running[row]:
                        ids[row].append(chosen[row])
            if not any(running):
                break
            if count % _TOKENS_PER_TURN == _TOKENS_PER_TURN - 1:
                yield
            logits = state.next(chosen)
        texts = [self.tokens.text(one) for one in ids]
        return [
            Decoded(tuple(ids[row]), texts[row], sums[row] / (len(ids[row]) + 1), quiet[row], temperatures[row])
            for row in range(n_rows)
        ]

    @torch.inference_mode()
    def _choose(
        self, logits: torch.Tensor, ids: Sequence[Sequence[int]], temperatures: Sequence[float], *, first: bool
    ) -> tuple[list[int], list[float]]:
        """The next token of each row, and its log-probability among those that may come."""
        lowest = float("-inf")
        logits[:, self._suppressed] = lowest
        if first:
            logits[:, self._at_begin] = lowest
        first_time = self.tokens.first_time
        for row, one in enumerate(ids):
            for begin, end in rules.allowed(one, self.tokens).banned:
                logits[row, begin:end] = lowest
        logprobs = torch.log_softmax(logits, dim=-1)
        times = torch.logsumexp(logprobs[:, first_time:], dim=-1)
        wants_time = times > logprobs[:, :first_time].amax(dim=-1)
        if bool(wants_time.any()):
            logits[wants_time, :first_time] = lowest
            logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.argmax(dim=-1)
        for row, temperature in enumerate(temperatures):
            if temperature > 0:
                chosen[row] = torch.multinomial(torch.softmax(logits[row] / temperature, dim=-1), 1)[0]
        picked = logprobs.gather(1, chosen[:, None])[:, 0]
        return chosen.tolist(), picked.tolist()


class _State:
    """The decoder's caches of one try."""

    def __init__(
        self, model: Any, hidden: torch.Tensor, prompts: Sequence[list[int]], openings: Sequence[list[int]], *, pad: int
    ) -> None:
        rows = [prompt + opening for prompt, opening in zip(prompts, openings, strict=True)]
        longest = max(len(one) for one in rows)
        device = hidden.device
        self._model, self._hidden = model, hidden
        self._ids = torch.tensor([[pad] * (longest - len(one)) + one for one in rows], device=device)
        self._mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in rows], device=device)
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._even = bool(self._mask.all())
        self._cache: Any = None
        self.room = model.config.max_target_positions - longest

    @torch.inference_mode()
    def begin(self, n_opening: int, no_speech: int | None) -> tuple[torch.Tensor, list[float]]:
        """`(n, vocab)` logits behind the openings, and each window's probability of no speech."""
        states = self._forward(self._ids, self._positions)
        logits = self._model.proj_out(states[:, -1]).float()
        if no_speech is None:
            return logits, [0.0] * states.shape[0]
        at_start = self._model.proj_out(states[:, -n_opening]).float()
        return logits, torch.softmax(at_start, dim=-1)[:, no_speech].tolist()

    @torch.inference_mode()
    def next(self, chosen: list[int]) -> torch.Tensor:
        """`(n, vocab)` logits behind these tokens."""
        ids = torch.tensor(chosen, device=self._hidden.device)[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        states = self._forward(ids, self._positions)
        logits: torch.Tensor = self._model.proj_out(states[:, -1]).float()
        return logits

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        answer = self._model.model.decoder(
            input_ids=ids,
            attention_mask=None if self._even else self._mask,
            position_ids=positions,
            encoder_hidden_states=self._hidden,
            cache=self._cache,
            use_cache=True,
        )
        self._cache = answer.cache
        states: torch.Tensor = answer.last_hidden_state
        return states
