"""Whisper's vocabulary: which tokens mean a language, a task or a time, and what a window's decoding begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from backends.engine import JobError, LoadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenizers import Tokenizer

    from backends.speech.kind import Task

TIME_S: Final = 0.02
"""Between two tokens of time."""
MULTILINGUAL: Final = 51865
"""Vocabularies of this size and more have languages."""
_LAST_TIMES: Final = 1501
_PUNCTUATION: Final = " \"'(-[{" + "\u00bf\u201c\u00ab" + "\"'.\u3002,\uff0c!\uff01?\uff1f:\uff1a)]}\u3001\u201d\u00bb"


@dataclass(frozen=True)
class Tokens:
    """The special tokens of one model."""

    tokenizer: Tokenizer
    end: int
    start: int
    previous: int | None
    no_speech: int | None
    first_time: int
    """Of 0.00 s; the token before it asks for no times."""
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    """By code; empty for a model of English alone."""
    n_vocab: int

    @property
    def multilingual(self) -> bool:
        """Whether it has languages and tasks."""
        return bool(self.languages)

    @property
    def special(self) -> tuple[int, int]:
        """From where to where the tokens are that stand in no text."""
        return self.end + 1, self.first_time

    def opening(self, language: str, task: Task) -> list[int]:
        """What decoding begins with, behind the prompt."""
        if not self.multilingual:
            return [self.start]
        return [self.start, self.languages[language], self.tasks[task]]

    def prompt(self, text: str, *, most: int) -> list[int]:
        """What the recording follows: its last tokens."""
        if not text.strip() or self.previous is None:
            return []
        ids = [one for one in self.tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids if one < self.end]
        return [self.previous, *ids[-most:]] if ids else []

    def text(self, ids: Sequence[int]) -> str:
        """Of tokens, without those that stand in no text; U+FFFD for half characters."""
        text: str = self.tokenizer.decode([one for one in ids if one < self.end], skip_special_tokens=False)
        return text

    def code(self, language: str, *, param: str = "language") -> str:
        """The code of a language by its code or English name. Raises JobError."""
        code = code_of(language)
        if code is None:
            told = (
                f"{language[:40]!r} is no language that Whisper knows. hint: its ISO-639-1 code, such as 'en' or 'de'"
            )
            raise JobError("invalid_value", told, param=param)
        if not self.multilingual and code != "en":
            told = f"this model hears English alone, and language is {LANGUAGES[code]}. hint: a multilingual Whisper"
            raise JobError("invalid_value", told, param=param)
        if self.multilingual and code not in self.languages:
            raise JobError("invalid_value", f"this model has no {LANGUAGES[code]}", param=param)
        return code

    def words(self, ids: Sequence[int], language: str) -> list[tuple[str, int]]:
        """Words of a text and how many tokens each has; scripts without spaces come token by token."""
        units: list[tuple[str, int]] = []
        begun: list[int] = []
        for one in ids:
            begun.append(one)
            text = self.text(begun)
            if "\ufffd" not in text:
                units.append((text, len(begun)))
                begun = []
        if begun:
            units.append((self.text(begun), len(begun)))
        if language in ("zh", "ja", "th", "lo", "my", "yue"):
            return units
        found: list[tuple[str, int]] = []
        for text, count in units:
            follows = found and not text.startswith(" ")
            if follows or (found and text.strip() and all(c in _PUNCTUATION for c in text.strip()) and text[0] != " "):
                found[-1] = (found[-1][0] + text, found[-1][1] + count)
            else:
                found.append((text, count))
        return found


def code_of(language: str) -> str | None:
    """The code that Whisper has for a code or an English name."""
    said = language.strip().lower()
    known: str | None = said if said in LANGUAGES else TO_LANGUAGE_CODE.get(said)
    return known


def name_of(code: str) -> str:
    """The English name of a language."""
    name: str = LANGUAGES.get(code, code)
    return name


def read(tokenizer: Tokenizer, generation: Mapping[str, Any], n_vocab: int) -> Tokens:
    """Raises LoadError where the vocabulary is none of Whisper's."""

    def token(text: str) -> int:
        found = tokenizer.token_to_id(text)
        if found is None or found >= n_vocab:
            raise LoadError(f"tokenizer.json has no {text}. hint: copy the one of the Whisper model into the folder")
        return found

    def maybe(*texts: str) -> int | None:
        ids = (tokenizer.token_to_id(text) for text in texts)
        return next((one for one in ids if one is not None and one < n_vocab), None)

    multilingual = n_vocab >= MULTILINGUAL and generation.get("is_multilingual") is not False
    languages = {code: found for code in LANGUAGES if (found := maybe(f"<|{code}|>")) is not None}
    first_time = token("<|notimestamps|>") + 1
    if first_time + _LAST_TIMES > n_vocab:
        raise LoadError(f"the vocabulary of {n_vocab} tokens has no room for times. hint: is it a Whisper model?")
    return Tokens(
        tokenizer,
        end=token("<|endoftext|>"),
        start=token("<|startoftranscript|>"),
        previous=maybe("<|startofprev|>"),
        no_speech=maybe("<|nospeech|>", "<|nocaptions|>"),
        first_time=first_time,
        tasks={name: token(f"<|{name}|>") for name in ("transcribe", "translate")} if multilingual else {},
        languages=languages if multilingual else {},
        n_vocab=n_vocab,
    )
