"""Examples as rows of tokens, the learnt ones marked, encoded just as a server encodes what it is asked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.engine import JobError
from backends.formats.thinking import Thinking
from backends.messages import ChatPrompt
from backends.training.examples import Completion
from backends.training.lines import ExampleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.bnb.vocabulary import FolderVocabulary
    from backends.generation.tokenizer import Tokenizer
    from backends.training.conversation import Conversation
    from backends.training.examples import Example

Pieces = list[tuple[str, bool]]


class Row(NamedTuple):
    """What one forward pass reads of one example."""

    tokens: list[int]
    learnt: list[bool]
    """Per token: whether the model is to foretell it. Never the first, which nothing stands before."""

    def cut(self, n_tokens: int) -> Row:
        """Its beginning."""
        return Row(self.tokens[:n_tokens], self.learnt[:n_tokens])


class Encoder:
    """For one model's vocabulary and template."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: FolderVocabulary, *, eos: int | None) -> None:
        """`eos` ends a text that no template ends."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = set(vocabulary.ends().tolist())
        self._eos = eos if eos is not None else next(iter(sorted(self._ends)), None)

    def rows(self, example: Example) -> list[Row]:
        """One, or of a conversation whose template writes earlier turns otherwise several. Raises ExampleError."""
        try:
            if isinstance(example, Completion):
                return [self._completion(example)]
            return _merged(self._answers(self._told_apart(example)))
        except JobError as error:
            raise ExampleError(error.message) from None

    def _told_apart(self, example: Conversation) -> Conversation:
        """With reasoning that stands at the beginning of a content, between the template's marks, where it belongs.

        As text it would be learnt in other tokens than the model writes. Raises ExampleError.
        """
        template = self._tokenizer.tool_template
        if template is None or template.marks is None:
            return example
        marks = template.marks[0].strip(), template.marks[1].strip()
        return example._replace(messages=[_reasoned(one, i, marks) for i, one in enumerate(example.messages)])

    def _completion(self, example: Completion) -> Row:
        head = self._with_bos(self._tokenize(example.prompt))
        tail = self._continued(example)
        if self._eos is not None and (not tail or tail[-1] not in self._ends):
            tail.append(self._eos)
        return _row(head, tail)

    def _continued(self, example: Completion) -> list[int]:
        """A completion as it goes on: some tokenizers put a space before whatever a text begins with."""
        head, whole = self._tokenize(example.prompt), self._tokenize(example.prompt + example.completion)
        if whole[: len(head)] == head:
            return whole[len(head) :]
        return self._tokenize(example.completion)  # a token reaches from one into the other

    def _tokenize(self, text: str) -> list[int]:
        """Literals of control tokens count: who writes texts writes the template too, as in `/v1/completions`."""
        return self._vocabulary.tokenize(text, parse_special=True) if text else []

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._vocabulary.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _answers(self, example: Conversation) -> Iterator[Row]:
        """Each answer that is learnt behind the prompt it would be generated for."""
        for i, learns in enumerate(example.learnt):
            if learns:
                prompt, thinking = self._pieces(example, i, answers=True)
                whole, _ = self._pieces(example, i + 1, answers=False)
                answer = _behind(prompt, whole)
                if answer is None and (begun := self._without_block(prompt)) is not None:
                    answer = _behind(begun, whole)
                if answer is None:
                    answer = self._as_written(example, i, whole, thinking)
                _check_whole(example.messages[i], i, answer)
                yield self._answer(prompt, answer)

    def _pieces(self, example: Conversation, n_messages: int, *, answers: bool) -> tuple[Pieces, Thinking]:
        messages = example.messages[:n_messages]
        prompt = ChatPrompt(messages=messages, tools=example.tools, end="answer" if answers else "nothing")
        return self._tokenizer.chat_pieces(prompt)

    def _without_block(self, prompt: Pieces) -> Pieces | None:
        """A prompt without the empty reasoning block that it ends with, which some templates write into no turn.

        None where it ends with none.
        """
        template = self._tokenizer.tool_template
        if template is None or template.marks is None:
            return None
        opening, closing = (re.escape(mark.strip()) for mark in template.marks)
        block = re.search(rf"{opening}\s*{closing}\s*\Z", "".join(text for text, _ in prompt))
        return None if block is None else _begin(prompt, block.start())

    def _as_written(self, example: Conversation, i: int, whole: Pieces, thinking: Thinking) -> Pieces:
        """An answer in a conversation that the template does not begin with its own prompt. Raises ExampleError."""
        message = example.messages[i]
        if message.get("tool_calls") or message.get("reasoning_content") or thinking is Thinking.OPEN:
            raise ExampleError(
                f"messages[{i}]: the chat template writes this answer otherwise than its prompt begins, so calls and "
                "reasoning cannot be learnt. hint: form completion, with the texts as the template writes them"
            )
        ends = [piece for piece in whole if piece[1] and self._token(piece) in self._ends]
        return [(message["content"], False), *ends[-1:]]

    def _answer(self, prompt: Pieces, answer: Pieces) -> Row:
        """What the model has to write: up to the token that ends its turn, and nothing behind it."""
        last = max((i for i, piece in enumerate(answer) if piece[1] and self._token(piece) in self._ends), default=None)
        kept = answer if last is None else answer[: last + 1]
        pieces = [*prompt, *kept]
        tokens = [self._tokenizer.encode_piece(pieces, i) for i in range(len(pieces))]
        tail = [token for piece in tokens[len(prompt) :] for token in piece]
        if last is None and self._eos is not None:
            tail.append(self._eos)
        return _row(self._with_bos([token for piece in tokens[: len(prompt)] for token in piece]), tail)

    def _token(self, piece: tuple[str, bool]) -> int:
        return self._tokenizer.encode_piece([piece], 0)[0]


def _row(head: list[int], tail: list[int]) -> Row:
    learnt = [False] * len(head) + [True] * len(tail)
    learnt[:1] = [False] * len(learnt[:1])
    return Row(head + tail, learnt)


def _reasoned(message: dict[str, Any], i: int, marks: tuple[str, str]) -> dict[str, Any]:
    """Raises ExampleError."""
    opening, closing = marks
    content = (message["content"] or "").lstrip()
    if message["role"] != "assistant" or message.get("reasoning_content") or not content.startswith(opening):
        return message
    reasoning, closed, answer = content.removeprefix(opening).partition(closing)
    if not closed:
        raise ExampleError(
            f"messages[{i}].content begins with {opening} and has no {closing}. hint: close it, or reasoning_content"
        )
    told = {"reasoning_content": reasoning.strip()} if reasoning.strip() else {}
    return {**message, **told, "content": answer.lstrip()}


def _behind(prompt: Pieces, whole: Pieces) -> Pieces | None:
    """What stands in `whole` behind `prompt`; None where it does not begin so."""
    if not prompt or whole[: len(prompt) - 1] != prompt[:-1] or len(whole) < len(prompt):
        return None
    (text, is_control), (begun, begun_control) = whole[len(prompt) - 1], prompt[-1]
    if is_control != begun_control or not text.startswith(begun) or (is_control and text != begun):
        return None
    rest: Pieces = [] if text == begun else [(text[len(begun) :], False)]
    return [*rest, *whole[len(prompt) :]]


def _begin(pieces: Pieces, n_chars: int) -> Pieces:
    """The first so many characters."""
    begun: Pieces = []
    for text, is_control in pieces:
        if n_chars <= 0:
            break
        begun.append((text[:n_chars], is_control))
        n_chars -= len(text)
    return begun


def _check_whole(message: Mapping[str, Any], i: int, answer: Pieces) -> None:
    """Raises ExampleError where the template leaves out a part of an answer, so that it would not be learnt."""
    written = "".join(text for text, _ in answer)
    for part in ("reasoning_content", "content"):
        if (message.get(part) or "").strip() not in written:
            raise ExampleError(
                f"messages[{i}].{part}: the chat template leaves out some of it, so it cannot be learnt. "
                "hint: leave it out, or form completion, with the texts as the template writes them"
            )


def _merged(rows: Iterator[Row]) -> list[Row]:
    """One row for several answers where the later prompt holds the earlier answer as it was learnt."""
    found: list[Row] = []
    for row in rows:
        before = found[-1] if found else None
        if before is not None and row.tokens[: len(before.tokens)] == before.tokens:
            found[-1] = Row(row.tokens, before.learnt + row.learnt[len(before.tokens) :])
        else:
            found.append(row)
    return found
