"""Whisper as mathematics: sound to features to hidden states to tokens, several windows at a time.

Owns tries and what comes of them. The forward pass is `decoder`'s, the next token `choice`'s, what is good enough
`rules`'; whose windows they are is the engine's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.speech import rules
from backends.speech.choice import Chooser, Row
from backends.speech.decoder import Decoder

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from backends.speech.decoder import Cells, Sound
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
        self._decoder = Decoder(model)
        self._chooser = Chooser(tokens, suppressed, at_begin, device=model.device)
        self.n_places = self._decoder.n_places

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

    def sound(self, hidden: torch.Tensor) -> Sound:
        """What the decoder looks at, of the encoder's hidden states."""
        return self._decoder.sound(hidden)

    def languages(self, sound: Sound) -> list[str]:
        """The likeliest language of each window, by its code."""
        codes = list(self.tokens.languages)
        places = torch.tensor([self.tokens.languages[code] for code in codes], device=self._device)
        logits = self.first_logits(sound, [self.tokens.start])
        return [codes[int(one)] for one in logits[:, places].argmax(dim=-1)]

    def first_logits(self, sound: Sound, opening: list[int]) -> torch.Tensor:
        """`(n, vocab)` behind the opening."""
        return _State(self, sound, [Row([], opening, 0.0)] * sound.n_rows).begin(1, None)[0]

    def recognise(self, sound: Sound, rows: Sequence[Row]) -> Generator[None, None, list[Decoded]]:
        """The text of each window; gives others a turn between. Temperature 0 means that higher ones may be tried."""
        begun = time.perf_counter()
        best = yield from self._decode(sound, rows)
        first_s = time.perf_counter() - begun
        until = begun + first_s + max(_LEAST_RETRY_S, _RETRY_SHARE * first_s)
        for temperature in TEMPERATURES[1:]:
            again = [place for place, one in enumerate(best) if not one.is_good and rows[place].temperature == 0]
            if not again or time.perf_counter() > until:
                break
            others = [Row([], rows[place].opening, temperature) for place in again]
            tried = yield from self._decode(sound.only(again), others)
            for place, one in zip(again, tried, strict=True):
                best[place] = one if one.is_better(best[place]) else best[place]
        return best

    def _decode(self, sound: Sound, rows: Sequence[Row]) -> Generator[None, None, list[Decoded]]:
        """One try; rows that have ended wait for the last."""
        state = _State(self, sound, rows)
        logits, quiet = state.begin(len(rows[0].opening), self.tokens.no_speech)
        temperatures = [row.temperature for row in rows]
        ids: list[list[int]] = [[] for _ in rows]
        sums, running = [0.0] * len(rows), [True] * len(rows)
        for count in range(state.room):
            chosen, logprobs = self._chooser.choose(logits, ids, temperatures)
            for row, token in enumerate(chosen):
                if running[row]:
                    sums[row] += logprobs[row]
                    running[row] = token != self.tokens.end
                    if running[row]:
                        ids[row].append(token)
            if not any(running):
                break
            if count % _TOKENS_PER_TURN == _TOKENS_PER_TURN - 1:
                yield
            logits = state.next(chosen)
        return [
            Decoded(tuple(some), self.tokens.text(some), sums[row] / (len(some) + 1), quiet[row], temperatures[row])
            for row, some in enumerate(ids)
        ]

    def states(self, ids: torch.Tensor, cells: Cells, sound: Sound) -> torch.Tensor:
        """`(n, new, width)` behind these `(n, new)` tokens."""
        return self._decoder.forward(ids, cells, sound)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """`(n, width)` -> `(n, vocab)`."""
        found: torch.Tensor = self.model.proj_out(states).float()
        return found

    def cells(self, starts: Sequence[int], longest: int) -> Cells:
        """For rows of so many tokens at most, and what is written behind them."""
        return self._decoder.cells(starts, min(longest + rules.MOST_TOKENS, self._decoder.n_places))


class _State:
    """One try: rows are filled up on the left, so that all write their next token at once."""

    def __init__(self, recogniser: Recogniser, sound: Sound, rows: Sequence[Row]) -> None:
        begun = [row.prompt + row.opening for row in rows]
        longest = max(len(one) for one in begun)
        pad = recogniser.tokens.end
        self._recogniser, self._sound = recogniser, sound
        self._ids = [[pad] * (longest - len(one)) + one for one in begun]
        self._cells = recogniser.cells([longest - len(one) for one in begun], longest)
        self.room = min(rules.MOST_TOKENS, recogniser.n_places - longest)
        """Tokens that may be written."""

    @torch.inference_mode()
    def begin(self, n_opening: int, no_speech: int | None) -> tuple[torch.Tensor, list[float]]:
        """`(n, vocab)` logits behind the openings, and each window's probability of no speech."""
        states = self._states(self._ids)
        logits = self._recogniser.logits(states[:, -1])
        if no_speech is None:
            return logits, [0.0] * states.shape[0]
        at_start = self._recogniser.logits(states[:, -n_opening])
        return logits, torch.softmax(at_start, dim=-1)[:, no_speech].tolist()

    @torch.inference_mode()
    def next(self, chosen: Sequence[int]) -> torch.Tensor:
        """`(n, vocab)` logits behind these tokens."""
        return self._recogniser.logits(self._states([[one] for one in chosen])[:, -1])

    def _states(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        given = torch.tensor(ids, device=self._cells.starts.device)
        return self._recogniser.states(given, self._cells, self._sound)
