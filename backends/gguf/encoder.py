"""A GGUF embedding model or reranker as the embedding engine sees it: texts to tokens, tokens to vectors or scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.engine import LoadError
from backends.gguf import pooled
from backends.vectors.engine import Input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.generation.tokenizer import Tokenizer
    from backends.gguf.model import Model
    from backends.gguf.pooled import PooledContext
    from backends.messages import EncoderFacts, Ready


class GgufEncoder:
    """See `backends.vectors.engine.InputEncoder`."""

    padded = False

    def __init__(
        self, model: Model, context: PooledContext, tokenizer: Tokenizer, *, ready: Ready[EncoderFacts], max_tokens: int
    ) -> None:
        self._model = model
        self._context = context
        self._tokenizer = tokenizer
        self._ready = ready
        self._frame = pooled.pair_frame(model)
        self._template = model.chat_template("rerank")
        self._softmaxed = softmaxed(model)
        self.max_tokens = max_tokens
        self.max_inputs = pooled.SEQUENCES
        self.reranks = context.reranks
        self.width = context.width

    def ready(self) -> Ready[EncoderFacts]:
        """The effective run-time figures."""
        return self._ready

    def text(self, text: str, *, add_special: bool = True) -> list[int]:
        """The tokens of a text; a special token's literal in it stays text."""
        if add_special:
            return pooled.tokenize(self._model, text)
        return self._model.tokenize(text, parse_special=False)

    def pair(self, query: str, document: str) -> Input:
        """The model's own template for pairs, where it has one, else the special tokens of its vocabulary."""
        if self._template is not None:
            tokens = self._tokenizer.fill(self._template, query=query, document=document)
            return Input(np.array(tokens, dtype=np.int32))
        before, between, behind = self._frame
        first = [*before, *self._model.tokenize(query, parse_special=False), *between]
        second = [*self._model.tokenize(document, parse_special=False), *behind]
        return Input(np.array(first + second, dtype=np.int32), second=len(first))

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""
        return self._tokenizer.decode(tokens)

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """The bytes of each of them."""
        return [self._model.literal(token) for token in tokens]

    def encode(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """`(len(inputs), width) float32`: vectors, or `(len(inputs), 1)` scores."""
        rows = self._context.encode([one.ids for one in inputs])
        return scores(rows, softmaxed=self._softmaxed) if self.reranks else rows

    def close(self) -> None:
        """Free everything."""
        self._context.close()
        self._model.close()


def scores(rows: NDArray[np.float32], *, softmaxed: bool) -> NDArray[np.float32]:
    """`(n, n_classes)` -> `(n, 1)` of 0..1.

    The sigmoid of a single class (as sentence-transformers' CrossEncoder), or the first of classes (`yes`, `no`) that
    llama.cpp has put through softmax.
    """
    if softmaxed:
        return rows[:, :1].copy()
    halves = np.tanh(rows.astype(np.float64) / 2)  # the sigmoid, without overflow
    return ((halves + 1) / 2).astype(np.float32)


def softmaxed(model: Model) -> bool:
    """Whether llama.cpp answers with the probabilities of `yes` and `no`."""
    return (model.metadata("general.architecture") or "").startswith("qwen3")


def check_scores(model: Model, context: PooledContext) -> None:
    """Refuse a head whose scores llama.cpp would compute otherwise than the model means them. Raises LoadError."""
    if not context.reranks:
        return
    n_types = int(model.metadata("tokenizer.ggml.token_type_count") or 0)
    if pooled.is_word_piece(model) and n_types > 1:
        raise LoadError(
            f"this reranker tells its two texts apart by {n_types} token types, which llama.cpp does not compute. "
            "hint: serve its Hugging Face folder"
        )
    if context.width > 1 and not softmaxed(model):
        raise LoadError(f"its head has {context.width} classes, so it is a classifier and no reranker")
