"""Where other prompts are likely to part from a prompt: the places for checkpoints of models that forget.

A wrong place costs a checkpoint without use, never a wrong answer.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from backends.engine import JobError
from backends.messages import ChatPrompt
from backends.prefix.index import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.generation.tokenizer import Tokenizer
    from backends.messages import Prompt

ANSWER_TOKENS: Final = 32
"""What a template puts in front of an answer is shorter."""


def borders(tokenizer: Tokenizer, prompt: Prompt, tokens: Sequence[int]) -> tuple[int, ...]:
    """Numbers of tokens, ascending; the last one is the end of the prompt, behind which one token at least is computed.

    In a chat others part at the first message of the user (who shares the system message), at the last one (who edits
    it), and at the answer, which the next turn may show otherwise than it was generated. So a chat ends before what the
    template puts in front of an answer.
    """
    end = len(tokens) - 1
    if not isinstance(prompt, ChatPrompt) or prompt.media:
        return (end,) if end > 0 else ()
    messages = prompt.messages
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    chat = _Chat(tokenizer, prompt, len(tokens))
    found = {chat.parts_from([*messages[:i], _other(messages[i])]) for i in {*users[:1], *users[-1:]}}
    if prompt.end == "answer":
        answered = [*messages, {"role": "assistant", "content": "A"}, {"role": "user", "content": "A"}]
        answer = chat.parts_from(answered)
        if end - ANSWER_TOKENS <= answer < end:
            end = answer
    return (*sorted(at for at in found if 0 < at < end), end) if end > 0 else ()


def _other(message: dict[str, Any]) -> dict[str, Any]:
    """A message that begins otherwise."""
    return {**message, "content": "B" if str(message.get("content")).lstrip()[:1] == "A" else "A"}


class _Chat:
    """A rendered conversation and the tokens of its pieces."""

    def __init__(self, tokenizer: Tokenizer, prompt: ChatPrompt, n_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._pieces, _ = tokenizer.chat_pieces(prompt)
        self._tokens = [tokenizer.encode_piece(self._pieces, i) for i in range(len(self._pieces))]
        self._ends = list(accumulate(map(len, self._tokens), initial=0))
        self._n_opening = n_tokens - self._ends[-1]

    def parts_from(self, messages: list[dict[str, Any]]) -> int:
        """How many tokens it has in common with the conversation of other messages; 0 where those make none.

        One less than they have, because the text of a third one may be merged with it.
        """
        try:
            theirs, _ = self._tokenizer.chat_pieces(msgspec.structs.replace(self._prompt, messages=messages))
        except JobError:  # a template may refuse what comes out
            return 0
        both = min(len(self._pieces), len(theirs))
        at = next((i for i in range(both) if self._pieces[i] != theirs[i]), both)
        first = max(0, at - 1)  # what stands behind a piece may swallow its white space
        here = [token for piece in self._tokens[first : at + 1] for token in piece]
        there = [
            token for i in range(first, min(at + 1, len(theirs))) for token in self._tokenizer.encode_piece(theirs, i)
        ]
        n_common = common(np.array(here, dtype=np.int32), np.array(there, dtype=np.int32))
        return max(0, self._n_opening + self._ends[first] + n_common - 1)
