"""Prompts to token ids, and back, over the vocabulary of one model.

Owns the rule that special tokens are recognised only where the template put them, and that everything between two of
them is tokenized whole, so that ordinary text keeps its canonical tokens.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

import msgspec
import numpy as np

from backends.constraints.guides import Guides, shown_marks
from backends.constraints.vocabulary import ConstraintVocabulary
from backends.engine import JobError
from backends.formats import generic
from backends.formats.splitter import splitter
from backends.formats.thinking import Thinking, thinking_of
from backends.generation.media import PromptRows
from backends.generation.row_layout import TEXT_ALONE, RowLayout
from backends.messages import (
    ChatPrompt,
    FimPrompt,
    MediaSegment,
    SegmentPrompt,
    TextPrompt,
    TextSegment,
    TokenPrompt,
    TokenSegment,
)
from backends.prompts import fim
from backends.prompts.chat_template import ChatTemplate, Guard
from backends.prompts.media_places import MediaPlaces
from backends.prompts.open_turn import OpenTurn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from backends.formats.splitter import Splitter
    from backends.generation.decoder import DecoderModel
    from backends.messages import Generate, Prompt, Segment
    from backends.prompts.control import Control


MAX_TEXT_BYTES = 16 << 20
"""Far below what one frame holds: a report that is too large to send would end the worker."""


class Encoded(NamedTuple):
    """A prompt as rows."""

    tokens: list[int]
    """In rows of media anything."""
    thinking: Thinking
    """Whether reasoning follows it."""
    layout: RowLayout = TEXT_ALONE
    """Which rows are media."""


class Tokenizer:
    """Thread-safe: it only reads the vocabulary."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self._controls: dict[str, Control] = {control.literal: control for control in model.controls()}
        self._guard = Guard(self._controls)
        self._infill = model.infill_marks()
        self._templates = _templates(model)
        template = self.tool_template
        marks = None if template is None else template.marks
        shown = () if template is None else shown_marks(template.format, marks)
        self._shown = {c.token: c.literal.encode() for c in self._controls.values() if c.literal in shown}
        self._marks = {literal: token for token, literal in self._shown.items()}
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._mark = re.compile(b"(" + b"|".join(map(re.escape, longest_first)) + b")") if longest_first else None
        self.guides = Guides(
            vocabulary=self._vocabulary,
            format_=generic.FORMAT if template is None else template.format,
            piece=self.shown_piece,
            ends=self.ends.tolist(),
            marks=marks,
        )

    @cached_property
    def ends(self) -> NDArray[np.int32]:
        """`(n,) int32`: the tokens that end a generation; a mark that only ends a part of an answer is none."""
        ends = self._model.ends()
        others = [token for token in ends.tolist() if token not in self._shown]
        return np.array(others, np.int32) if others else ends

    @property
    def can_infill(self) -> bool:
        """The vocabulary has the tokens for fill-in-the-middle."""
        return self._infill is not None

    @cached_property
    def longest_token_bytes(self) -> int:
        """Of the vocabulary's tokens, as they are written in a text."""
        return max(len(self._model.literal(token)) for token in range(self._model.n_vocab))

    @property
    def tool_template(self) -> ChatTemplate | None:
        """The template for conversations with tools: some models have one of their own for them."""
        template = self._templates.get("tool_use", self._templates.get("default"))
        return template if isinstance(template, ChatTemplate) else None

    def splitters(self, job: Generate, *, opened: bool) -> Callable[[], Splitter | None]:
        """Makes what sorts each choice of a job, where its stop strings are about the content alone."""
        prompt, template = job.prompt, self.tool_template
        if not job.stop or not isinstance(prompt, ChatPrompt) or template is None:
            return lambda: None
        format_, marks, tools = template.format, template.marks, prompt.tools
        return lambda: splitter(format_, marks, opened=opened, tools=tools, only=job.constraint)

    def shown_piece(self, token: int) -> bytes:
        """The bytes of a token in a text that shows the marks of calls and reasoning."""
        return self._shown.get(token) or self._model.piece(token)

    def _vocabulary(self) -> ConstraintVocabulary:
        return ConstraintVocabulary(
            pieces=[self.shown_piece(token) for token in range(self._model.n_vocab)],
            ends=self.ends.tolist(),
            tokenize=self._spelled,
        )

    def _spelled(self, text: bytes) -> list[int]:
        """Tokens that write a text as the model would: marks are the control tokens that they are."""
        tokens: list[int] = []
        for piece in self._mark.split(text) if self._mark is not None else [text]:
            if (mark := self._marks.get(piece)) is not None:
                tokens.append(mark)
            elif piece:
                tokens += self._model.tokenize(piece.decode("utf-8", "replace"), parse_special=False)
        return tokens

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt, where its media are, and whether reasoning follows it. Raises JobError."""
        match prompt:
            case ChatPrompt():
                return self._encode_chat(prompt)
            case TextPrompt():
                tokens = self._with_bos(self._model.tokenize(prompt.text, parse_special=True))
                return Encoded(tokens or self._opening(), Thinking.NEVER)
            case FimPrompt():
                return Encoded(self.encode_infill(prompt, room=MAX_TEXT_BYTES)[0], Thinking.NEVER)
            case TokenPrompt():
                return Encoded(self._check_ids(prompt.tokens), Thinking.NEVER)
            case SegmentPrompt():
                rows = PromptRows(self._model.tower)
                for segment in prompt.segments:
                    self._add_segment(rows, segment)
                return self._rows(rows, Thinking.NEVER)
            case _:
                assert_never(prompt)

    def _add_segment(self, rows: PromptRows, segment: Segment) -> None:
        match segment:
            case TextSegment():
                rows.tokens += self._model.tokenize(segment.text, parse_special=not segment.plain)
            case TokenSegment():
                rows.tokens += self._check_ids(segment.tokens)
            case MediaSegment():
                rows.add(segment.medium)
            case _:
                assert_never(segment)

    def _encode_chat(self, prompt: ChatPrompt) -> Encoded:
        if not prompt.media:
            pieces, thinking = self.chat_pieces(prompt)
            return Encoded(self._with_bos(self._encode_pieces(pieces)), thinking)
        places, rows = MediaPlaces(prompt.messages, len(prompt.media)), PromptRows(self._model.tower)
        worded = msgspec.structs.replace(prompt, messages=places.in_words(prompt.messages), media=[])
        found, thinking = self.chat_pieces(worded)
        parts = [(part, control) for text, control in found for part in places.split(text)]
        if rows.leads:
            parts = _media_first(parts)
        pieces = [(part if isinstance(part, str) else "", control) for part, control in parts]
        if len({part for part, _ in parts if isinstance(part, int)}) < len(prompt.media):
            raise JobError("template_error", "the chat template leaves out an image or a sound", param="prompt")
        for index, (part, _) in enumerate(parts):
            if isinstance(part, int):
                rows.add(prompt.media[part])
            else:
                rows.tokens += self.encode_piece(pieces, index)
        return self._rows(rows, thinking)

    def _rows(self, rows: PromptRows, thinking: Thinking) -> Encoded:
        bos = self._model.bos
        if bos is not None and rows.begins_with_text[:1] != [bos]:
            rows.begin_with([bos])
        return Encoded(rows.tokens or self._opening(), thinking, rows.layout)

    def chat_pieces(self, prompt: ChatPrompt) -> tuple[list[tuple[str, bool]], Thinking]:
        """A rendered conversation cut at its control tokens, `(text, is_control)`, and whether reasoning follows it.

        Of one without media. Raises JobError.
        """
        template = self._template_for(prompt)
        (messages, tools), sentinels = self._guard.protect([prompt.messages, prompt.tools])
        turn = _open_turn(messages, template) if prompt.end == "message" else None
        rendered = template.render(
            messages if turn is None else turn.messages,
            tools=tools,
            add_generation_prompt=prompt.end == "answer",
            **prompt.template_kwargs,
        )
        thinking = thinking_of(rendered, template.marks)
        if turn is not None:
            rendered = turn.cut(rendered)
            inside = template.marks is not None and turn.reasons(template.marks)
            thinking = Thinking.OPEN if inside else Thinking.NEVER
        return self._guard.split(rendered, sentinels), thinking

    def fill(self, template: str, **texts: str) -> list[int]:
        """A template with `{name}` where a text goes: control tokens are those of the template alone."""
        guarded, sentinels = self._guard.protect(texts)
        parts = re.split(r"\{(\w+)\}", template)
        rendered = "".join(guarded.get(part, f"{{{part}}}") if i % 2 else part for i, part in enumerate(parts))
        return self._encode_pieces(self._guard.split(rendered, sentinels))

    def _template_for(self, prompt: ChatPrompt) -> ChatTemplate:
        default = self._templates.get("default")
        template = self._templates.get("tool_use", default) if prompt.tools else default
        if isinstance(template, JobError):
            raise template
        if template is None:
            raise JobError(
                "unsupported_parameter",
                "this model has no chat template, so it cannot take messages. hint: use /v1/completions",
                param="prompt",
            )
        return template

    def _encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        return [token for index in range(len(pieces)) for token in self.encode_piece(pieces, index)]

    def encode_piece(self, pieces: Sequence[tuple[str, bool]], index: int) -> list[int]:
        """The tokens of one piece, which depend on nothing but what stands beside it."""
        text, is_control = pieces[index]
        if is_control:
            return [self._controls[text].token]
        before = pieces[index - 1] if index else ("", False)
        after = pieces[index + 1] if index + 1 < len(pieces) else ("", False)
        return self._model.tokenize(self._strip(text, before, after), parse_special=False)

    def _strip(self, text: str, before: tuple[str, bool], after: tuple[str, bool]) -> str:
        """Some control tokens swallow the white space beside them (Phi-3 and others mark them so)."""
        if before[1] and self._controls[before[0]].strips_right:
            text = text.lstrip()
        if after[1] and self._controls[after[0]].strips_left:
            text = text.rstrip()
        return text

    def encode_infill(self, prompt: FimPrompt, *, room: int) -> tuple[list[int], int]:
        """Token ids, at most `room` where leaving files out achieves it, and how many were. Raises JobError."""
        if self._infill is None:
            raise JobError(
                "unsupported_parameter",
                "this model's vocabulary has no fill-in-the-middle tokens, so it cannot take a suffix",
                param="suffix",
            )
        bos = [] if self._model.bos is None else [self._model.bos]
        return fim.encode(
            prompt,
            self._infill,
            lambda text: self._model.tokenize(text, parse_special=False),
            opening=bos,
            room=room,
            longest_token_bytes=lambda: self.longest_token_bytes,
        )

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._model.bos
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def _opening(self) -> list[int]:
        return [] if self._model.opening is None else [self._model.opening]

    def _check_ids(self, tokens: list[int]) -> list[int]:
        limit = self._model.n_vocab
        bad = next((token for token in tokens if not 0 <= token < limit), None)
        if bad is not None:
            message = f"token id {bad} is outside this model's vocabulary of {limit} tokens"
            raise JobError("invalid_value", message, param="prompt")
        return tokens

    def raw(self, text: str, *, add_special: bool) -> list[int]:
        """Ids of plain text as `/tokenize` gives them."""
        tokens = self._model.tokenize(text, parse_special=True)
        return self._with_bos(tokens) if add_special else tokens

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """The bytes of token ids, control tokens as their literals. Raises JobError for ids outside the vocabulary."""
        names = {control.token: control.literal.encode() for control in self._controls.values()}
        return [names.get(token) or self._model.piece(token) for token in self._check_ids(tokens)]

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, control tokens as their literals. Raises JobError for ids outside the vocabulary."""
        text = b"".join(self.pieces(tokens))
        if len(text) > MAX_TEXT_BYTES:
            message = f"the text of these tokens takes {len(text)} bytes, {MAX_TEXT_BYTES} are allowed"
            raise JobError("invalid_value", message, param="tokens")
        return text.decode("utf-8", "replace")


def _media_first(parts: Sequence[tuple[str | int, bool]]) -> list[tuple[str | int, bool]]:
    """Media before all text, which is what it would be without them."""
    media: list[tuple[str | int, bool]] = [one for one in parts if isinstance(one[0], int)]
    texts: list[tuple[str | int, bool]] = []
    for text, control in parts:
        if isinstance(text, int):
            continue
        if texts and not control and not texts[-1][1]:
            texts[-1] = (f"{texts[-1][0]}{text.removeprefix(chr(10))}", False)
        else:
            texts.append((text, control))
    return [*media, *texts]


def _open_turn(messages: list[dict[str, Any]], template: ChatTemplate) -> OpenTurn:
    if template.format.text_opening:  # what it writes first would tell in which channel it goes on
        message = "the last message cannot be continued: this model begins every part of an answer anew"
        raise JobError("invalid_value", message, param="prompt")
    return OpenTurn(messages)


def _templates(model: DecoderModel) -> dict[str, ChatTemplate | JobError]:
    """The model's templates by name. A broken one is kept as its error: raw completions work without a template."""
    texts = model.special_texts()
    found: dict[str, ChatTemplate | JobError] = {}
    for name, source in (("default", model.chat_template()), ("tool_use", model.chat_template("tool_use"))):
        if source:
            try:
                found[name] = ChatTemplate(source, special_tokens=texts)
            except JobError as error:
                found[name] = error
    return found
