"""A Hugging Face embedding model or reranker as the embedding engine sees it: hidden states, pooled, or a head's score.

Owns the forward pass over a rectangle of inputs and what follows it. A pass for which there is no memory is halved; a
single input for which there is none fails alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.bnb.vocabulary import encoded
from backends.pytorch import shortage
from backends.vectors.engine import Input, NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from backends.bnb.layout import Layout, Pooling
    from backends.bnb.vocabulary import FolderVocabulary
    from backends.messages import EncoderFacts, Ready

MAX_INPUTS: Final = 256


class FolderEncoder:
    """See `backends.vectors.engine.InputEncoder`."""

    padded = True

    def __init__(
        self,
        model: Any,
        vocabulary: FolderVocabulary,
        tokenizer: Any,
        layout: Layout,
        *,
        dense: Sequence[torch.nn.Sequential],
        ready: Ready[EncoderFacts],
        max_tokens: int,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._tokens = tokenizer.backend_tokenizer
        self._tokens.encode_special_tokens = True
        self._layout = layout
        self._dense = dense
        self._ready = ready
        self._device = model.device
        config = model.config.get_text_config()
        self._pad = int(tokenizer.pad_token_id or config.pad_token_id or 0)
        self._has_types = "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
        self._masked = layout.gives == "scores" or not _is_causal(model)
        self.max_tokens = max_tokens
        self.max_inputs = MAX_INPUTS
        self.reranks = layout.gives == "scores"
        self.width = 1 if self.reranks else _width(dense[-1]) if dense else int(config.hidden_size)

    def ready(self) -> Ready[EncoderFacts]:
        """The effective run-time figures."""
        return self._ready

    def text(self, text: str, *, add_special: bool = True) -> list[int]:
        """The tokens of a text behind the folder's prompt; a special token's literal in it stays text."""
        whole = self._layout.prompt + text if add_special else text
        return self._plain(encoded(self._tokens, _sound(whole), add_special_tokens=add_special))[0]

    def pair(self, query: str, document: str) -> Input:
        """Both texts as the folder's tokenizer puts them together."""
        both = encoded(self._tokens, _sound(query), _sound(document), add_special_tokens=True)
        ids, types = self._plain(both)
        return Input(np.array(ids, dtype=np.int32), second=types.index(1) if 1 in types else 0)

    def _plain(self, encoding: Any) -> tuple[list[int], list[int]]:
        """Ids and types, without control tokens but those that the tokenizer's own template has written."""
        ids, types, own = encoding.ids, encoding.type_ids, encoding.special_tokens_mask
        plain = self._vocabulary.plain
        text = [token for token, is_own in zip(ids, own, strict=True) if not is_own]
        if plain(text) is text:
            return ids, types
        rows = zip(ids, types, own, strict=True)
        found = [(one, kind) for token, kind, is_own in rows for one in ([token] if is_own else plain([token]))]
        return [one for one, _ in found], [kind for _, kind in found]

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""
        text: str = self._tokens.decode(tokens, skip_special_tokens=False)
        return text

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """The bytes of each of them."""
        return [self._vocabulary.literal(token) for token in tokens]

    def encode(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """`(len(inputs), width) float32`. Raises NoRoomError where one input alone finds no memory."""
        try:
            return self._run(inputs)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            told = shortage.told(error)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(inputs) == 1:
            n_tokens = inputs[0].ids.size
            hint = "hint: a shorter input, or a smaller context"
            raise NoRoomError(f"no memory is left for an input of {n_tokens} tokens: {told}. {hint}")
        half = len(inputs) // 2
        return np.concatenate([self.encode(inputs[:half]), self.encode(inputs[half:])])

    @torch.inference_mode()
    def _run(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        lengths = torch.tensor([one.ids.size for one in inputs], device=self._device)
        longest = int(lengths.max())
        ids = np.full((len(inputs), longest), self._pad, dtype=np.int64)
        types = np.zeros_like(ids)
        for row, one in enumerate(inputs):
            ids[row, : one.ids.size] = one.ids
            if one.second:
                types[row, one.second : one.ids.size] = 1
        asked = {"input_ids": torch.from_numpy(ids).to(self._device)}
        if self._has_types:
            asked["token_type_ids"] = torch.from_numpy(types).to(self._device)
        inside = torch.arange(longest, device=self._device) < lengths[:, None]
        if self._masked and not bool(inside.all()):  # in a causal model nothing sees the padding behind it
            asked["attention_mask"] = inside.long()
        answer = self._model(**asked)
        rows = torch.sigmoid(answer.logits.float()) if self.reranks else self._pooled(answer, inside)
        found: NDArray[np.float32] = rows.cpu().numpy()
        return found

    def _pooled(self, answer: Any, inside: torch.Tensor) -> torch.Tensor:
        rows = _POOL[self._layout.pooling](answer.last_hidden_state.float(), inside)
        for module in self._dense:
            rows = module(rows)
        return rows

    def close(self) -> None:
        """Let go of the weights."""
        del self._model


def _mean(states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    weights = inside[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _max(states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(~inside[:, :, None], float("-inf")).amax(1)


def _last(states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return states[torch.arange(states.shape[0], device=states.device), inside.sum(1) - 1]


_POOL: Final[dict[Pooling, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "mean": _mean,
    "cls": lambda states, _: states[:, 0],
    "max": _max,
    "last": _last,
}
"""`(n, length, width)` states and `(n, length)` of which are no padding -> `(n, width)`."""


def _width(dense: torch.nn.Sequential) -> int:
    linear = dense[0]
    assert isinstance(linear, torch.nn.Linear)
    return linear.out_features


def _is_causal(model: Any) -> bool:
    """Whether tokens see only those before them."""
    config = model.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", False):
        return False
    kinds = {
        bool(module.is_causal) for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)
    }
    return kinds == {True}


def _sound(text: str) -> str:
    """Without what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
