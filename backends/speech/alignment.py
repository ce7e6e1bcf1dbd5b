"""When each word was said: where the decoder looks in the sound while it writes, made monotone by time warping.

Source: https://github.com/openai/whisper/blob/main/whisper/timing.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from backends.speech.kind import Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.speech.recogniser import Recogniser
    from backends.speech.windows import Window

_FILTER: Final = 7
_LONGEST_WORD_S: Final = 3.0
"""A word that seems longer has swallowed a pause."""


class Aligner:
    """Of one model; `heads` are those that follow the sound, by layer and number."""

    def __init__(self, recogniser: Recogniser, heads: Sequence[tuple[int, int]]) -> None:
        self._recogniser = recogniser
        self._heads = sorted(set(heads))

    def words(
        self, hidden: torch.Tensor, window: Window, opening: list[int], ids: Sequence[int], code: str
    ) -> list[tuple[Word, int]]:
        """The words of one window's tokens, in seconds of the recording, each with how many tokens it has.

        `hidden` is `(1, positions, width)`.
        """
        tokens = self._recogniser.tokens
        text = [one for one in ids if one < tokens.end]
        if not text:
            return []
        sure = [*opening, tokens.first_time - 1, *text, tokens.end]
        looks = self._looks(hidden, sure, n_frames=max(1, round(window.duration_s * 50)))
        at_s = _times(looks[len(opening) : -1])
        found: list[tuple[Word, int]] = []
        place = 0
        for word, count in tokens.words(text, code):
            begin_s, end_s = at_s[place], at_s[min(place + count, len(at_s) - 1)]
            place += count
            end_s = min(max(end_s, begin_s), begin_s + _LONGEST_WORD_S)
            start_s = window.time_s(begin_s)
            last_s = max(start_s, window.time_s(end_s, end=True))
            found.append((Word(word.strip(), round(start_s, 2), round(last_s, 2)), count))
        return found

    @torch.inference_mode()
    def _looks(self, hidden: torch.Tensor, ids: list[int], *, n_frames: int) -> np.ndarray[Any, Any]:
        """`(tokens, frames)`: how much each token looks at each frame of the sound."""
        model = self._recogniser.model
        seen: dict[tuple[int, str], torch.Tensor] = {}
        hooks = [
            getattr(model.model.decoder.layers[layer].encoder_attn, f"{what}_proj").register_forward_hook(
                lambda _module, _given, out, place=(layer, what): seen.__setitem__(place, out)
            )
            for layer in {layer for layer, _ in self._heads}
            for what in "qk"
        ]
        try:
            given = torch.tensor([ids], device=hidden.device)
            model.model.decoder(input_ids=given, encoder_hidden_states=hidden, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        rows = []
        for layer, head in self._heads:
            size = model.model.decoder.layers[layer].encoder_attn.head_dim
            q, k = (seen[layer, what][0, :, head * size : (head + 1) * size].float() for what in "qk")
            rows.append(torch.softmax((q @ k.T * size**-0.5)[:, :n_frames], dim=-1))
        weights = torch.stack(rows)
        spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        smooth = _median_filter((weights - mean) / (spread + 1e-9), min(_FILTER, n_frames | 1))
        found: np.ndarray[Any, Any] = smooth.mean(dim=0).cpu().double().numpy()
        return found


def _times(looks: np.ndarray[Any, Any]) -> list[float]:
    """`(tokens, frames)` -> where each token begins, in seconds of the window, and where the last one ends."""
    of_token, of_frame = _dynamic_time_warping(-looks)
    begins = np.concatenate([[True], np.diff(of_token) > 0])
    return [float(frame) * 0.02 for frame in of_frame[begins]] + [float(of_frame[-1] + 1) * 0.02]
