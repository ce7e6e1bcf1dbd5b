"""From a job to what the engine can start: the prompt as tokens, its length decided, everything checked.

For the preparer's thread: it only reads the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import numpy as np

from backends.engine import JobError
from backends.formats.thinking import Thinking
from backends.generation import bookmark
from backends.generation.adapters import NO_ADAPTERS, LoadedAdapters
from backends.generation.borders import borders
from backends.generation.media import computed
from backends.generation.row_layout import TEXT_ALONE
from backends.generation.scoring import Echo
from backends.generation.sequence import PreparedGenerate
from backends.messages import (
    Detokenize,
    Detokenized,
    FimPrompt,
    Finished,
    Generate,
    TextPrompt,
    Tokenize,
    Tokenized,
)
from backends.plan import ANSWER_TOKENS
from backends.weight import sure_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderModel
    from backends.generation.row_layout import RowLayout
    from backends.generation.tokenizer import Tokenizer
    from backends.messages import Event, Looked, Prompt, TextJob

_SHORTEST_BOUND_BYTES = 16
"""No token is taken to be shorter than this when a prompt's length is judged unread."""
MAX_ECHO_CHARS = 1 << 20
"""Over all choices of a job. One frame holds the echoes of all jobs that start together, and one too large to send
would end the worker."""


class Preparer:
    """See the module's text; `context` is the tokens one job may use. `borders`: places for checkpoints are wanted."""

    def __init__(
        self,
        model: DecoderModel,
        tokenizer: Tokenizer,
        *,
        context: int,
        borders: bool,
        adapters: LoadedAdapters = NO_ADAPTERS,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context = context
        self._borders = borders
        self._adapters = adapters

    def prepare(self, job: TextJob) -> PreparedGenerate | list[Event]:
        """What the engine can start, or the answer itself where it needs no step. Raises JobError."""
        match job:
            case Generate():
                return self._generate(job)
            case Tokenize():
                return self._tokenize(job)
            case Detokenize():
                return [Detokenized(id=job.id, text=self._tokenizer.decode(job.tokens)), Finished(id=job.id)]
            case _:
                assert_never(job)

    def _generate(self, job: Generate) -> PreparedGenerate:
        job = self._adapters.own(job)
        bad = next((token for token in job.sampling.logit_bias if not 0 <= token < self._model.n_vocab), None)
        if bad is not None:
            message = f"token id {bad} is outside this model's vocabulary of {self._model.n_vocab} tokens"
            raise JobError("invalid_value", message, param="logit_bias")
        self._refuse_too_long(job.prompt, max(self._context, job.grows_to))
        if isinstance(job.prompt, FimPrompt):
            room = self._context - min(max(1, job.max_tokens or 1), self._context // 2)
            (tokens, omitted), thinking = self._tokenizer.encode_infill(job.prompt, room=room), Thinking.NEVER
            layout = TEXT_ALONE
        else:
            (tokens, thinking, layout), omitted = self._tokenizer.encode(job.prompt), 0
        self._ask_for_more(job, len(tokens))
        limit = self._limit(job, len(tokens))
        layout, looked = self._embedded(layout, len(tokens))
        prompt = np.array(tokens, dtype=np.int32)
        echo, scored = self._echo(job, tokens), self._scored(job, prompt)
        plan = self._tokenizer.guides.plan(job, thinking)
        places = borders(self._tokenizer, job.prompt, tokens) if self._borders and job.cache_prompt else ()
        opened = thinking is Thinking.OPEN
        sorts = self._tokenizer.splitters(job, opened=opened)
        return PreparedGenerate(
            job,
            prompt,
            limit,
            opened,
            echo,
            scored,
            omitted,
            layout,
            plan=plan,
            borders=places,
            new_splitter=sorts,
            looked=looked,
            prediction=tuple(self._tokenizer.raw(job.prediction, add_special=False)) if job.prediction else (),
            bookmark=bookmark.read(job.resume, self._model, limit=limit) if job.resume else None,
        )

    def _embedded(self, layout: RowLayout, n_prompt: int) -> tuple[RowLayout, Looked | None]:
        """The layout with the rows of its media: they are computed here, beside the engine's steps."""
        tower = self._model.tower
        if tower is None or not layout.media:
            return layout, None
        if layout.at(n_prompt - 1) is not None:
            raise JobError(
                "invalid_value", "the prompt ends with an image or a sound: put text behind it", param="prompt"
            )
        return computed(layout, tower)

    def _scored(self, job: Generate, prompt: NDArray[np.int32]) -> Echo | None:
        """The prompt to be echoed with log-probabilities; a prompt without tokens has none to show."""
        if not job.echo or job.logprobs is None or not prompt.size:
            return None
        pieces = self._tokenizer.pieces(prompt.tolist())
        if isinstance(job.prompt, TextPrompt):
            pieces = as_written(pieces, job.prompt.text.encode("utf-8", "replace"))
        return Echo(prompt, pieces, n_top=job.logprobs, literal=self._model.literal)

    def _echo(self, job: Generate, tokens: list[int]) -> str:
        """The prompt as the client wrote it; tokens would show a BOS and a space that are not the client's."""
        if not job.echo or job.logprobs is not None:
            return ""
        text = job.prompt.text if isinstance(job.prompt, TextPrompt) else self._tokenizer.decode(tokens)
        if job.n * len(text) > MAX_ECHO_CHARS:
            raise JobError("invalid_value", f"the prompt echoed {job.n} times is too much text", param="echo")
        return text

    def _tokenize(self, job: Tokenize) -> list[Event]:
        if isinstance(job.prompt, TextPrompt):
            tokens = self._tokenizer.raw(job.prompt.text, add_special=job.add_special)
        else:
            tokens = self._tokenizer.encode(job.prompt).tokens
        literals = {token: self._model.literal(token) for token in set(tokens)} if job.pieces else {}
        pieces = [literals[token] for token in tokens] if job.pieces else None
        return [Tokenized(id=job.id, tokens=tokens, pieces=pieces), Finished(id=job.id, prompt_tokens=len(tokens))]

    def _refuse_too_long(self, prompt: Prompt, context: int) -> None:
        """Refuse, before anything is rendered or tokenized, what is too long by its bytes alone. Raises JobError."""
        n_bytes = sure_bytes(prompt)
        if n_bytes <= _SHORTEST_BOUND_BYTES * context:
            return
        at_least = n_bytes // max(self._tokenizer.longest_token_bytes, _SHORTEST_BOUND_BYTES)
        if at_least > context:
            raise JobError(
                "context_length_exceeded",
                f"This model's maximum context length is {context} tokens. However, your prompt resulted in at "
                f"least {at_least} tokens. Please reduce the length of the prompt.",
                param="prompt",
            )

    def _ask_for_more(self, job: Generate, n_prompt: int) -> None:
        """End a job that a longer context would serve, or serve better: with room for its answer. Raises JobError."""
        least = n_prompt + (job.max_tokens != 0)
        answer = ANSWER_TOKENS if job.max_tokens is None else min(job.max_tokens, ANSWER_TOKENS)
        wanted = min(n_prompt + max(answer, job.min_tokens), job.grows_to)
        if isinstance(job.prompt, FimPrompt) or wanted <= self._context or least > job.grows_to:
            return
        raise JobError(
            "context_length_exceeded",
            f"the prompt has {n_prompt} tokens, and the model is loaded with a context of {self._context}",
            param="prompt",
            context=(least, wanted),
        )

    def _limit(self, job: Generate, n_prompt: int) -> int:
        context = self._context
        if n_prompt == 0 and job.max_tokens != 0:
            raise JobError("invalid_value", "the prompt is empty, and the model has no first token", param="prompt")
        if n_prompt > context or (n_prompt == context and job.max_tokens != 0):
            raise JobError(
                "context_length_exceeded",
                f"This model's maximum context length is {max(context, job.grows_to)} tokens. However, your prompt "
                f"resulted in {n_prompt} tokens. Please reduce the length of the prompt.",
                param="prompt",
            )
        room = context - n_prompt
        if job.min_tokens > room:
            told = f"this model's context of {context} tokens has room for {room} behind the prompt"
            raise JobError(
                "invalid_value",
                f"Invalid 'min_tokens': {job.min_tokens} are asked for, and {told}.",
                param="min_tokens",
            )
        return room if job.max_tokens is None else min(job.max_tokens, room)


def as_written(pieces: list[bytes], text: bytes) -> list[bytes]:
    """The pieces without what a tokenizer puts in front of a text: a BOS, a space."""
    whole = b"".join(pieces)
    surplus = len(whole) - len(text) if whole.endswith(text) else 0
    shown = []
    for piece in pieces:
        shown.append(piece[surplus:])
        surplus = max(0, surplus - len(piece))
    return shown
