"""A Wav2Vec2-like model as a listener: a letter, a space or nothing for each frame, and so the time of each word."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from backends.engine import JobError, LoadError
from backends.files import model_files
from backends.speech import rules
from backends.speech.kind import Segment, Transcribe, Word
from backends.speech.listening import Asked, Found

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.speech.windows import Window

_SEGMENT_GAP_S: Final = 0.8
"""A longer pause between words begins a new segment."""
_LONGEST_SEGMENT_S: Final = 15.0
_MOST_LETTERS: Final = 100_000


class Spelled(NamedTuple):
    """A word, its first frame, the frame behind its last, and the numbers of its letters."""

    text: str
    begin: int
    end: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Letters:
    """The vocabulary: what is written for a frame."""

    texts: tuple[str, ...]
    """By number; empty for what stands in no text."""
    blank: int
    delimiter: int | None
    """What stands between words."""
    lowers: bool

    def words(self, ids: Sequence[int]) -> list[Spelled]:
        """The words of a window; repeats count once, unless something parts them."""
        found: list[Spelled] = []
        open_word: list[tuple[int, int, int]] = []
        for one, run in itertools.groupby(enumerate(ids), key=lambda pair: pair[1]):
            frames = [frame for frame, _ in run]
            if one == self.delimiter:
                found += self._spelled(open_word)
                open_word = []
            elif one != self.blank and self.texts[one]:
                open_word.append((one, frames[0], frames[-1] + 1))
        return found + self._spelled(open_word)

    def _spelled(self, letters: list[tuple[int, int, int]]) -> list[Spelled]:
        """One word, or none."""
        if not letters:
            return []
        text = "".join(self.texts[one] for one, _, _ in letters)
        numbers = tuple(one for one, _, _ in letters)
        return [Spelled(text.lower() if self.lowers else text, letters[0][1], letters[-1][2], numbers)]


class CtcListener:
    """See `backends.speech.listening.Listener`."""

    def __init__(self, model: Any, letters: Letters, *, normalise: bool, frame_s: float) -> None:
        self.model = model
        self._letters = letters
        self._normalise = normalise
        self._frame_s = frame_s

    def asked(self, job: Transcribe) -> Asked:
        """It only hears. Raises JobError for what would change nothing."""
        if job.task == "translate":
            raise JobError("invalid_value", "this model writes what it hears and translates nothing", param="model")
        if job.prompt:
            raise JobError("unsupported_parameter", "this model takes no prompt. hint: leave it out", param="prompt")
        if job.temperature > 0:
            told = "this model chooses no tokens, so there is no temperature. hint: leave it out"
            raise JobError("unsupported_parameter", told, param="temperature")
        if job.language is not None:
            told = "this model has one language, and its files do not say which. hint: leave language out"
            raise JobError("unsupported_parameter", told, param="language")
        return Asked(job.task, "", [], 0.0, job.words)

    def listen(self, windows: Sequence[Window], asked: Sequence[Asked]) -> Generator[None, None, list[Found | None]]:
        """A window at a time, as it was trained: filled up with silence, several would give other letters."""
        found: list[Found | None] = []
        for window, one in zip(windows, asked, strict=True):
            ids, logprob = self.letters(window.samples)
            found.append(self._found(window, ids, logprob, words=one.words) if math.isfinite(logprob) else None)
            yield
        return found

    @torch.inference_mode()
    def letters(self, samples: NDArray[np.int16]) -> tuple[list[int], float]:
        """The likeliest of each frame, and the mean log-probability of those that are written."""
        sound = samples.astype(np.float32) / 32768
        if self._normalise:
            sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        given = torch.from_numpy(sound)[None].to(self.model.device, self.model.dtype)
        logprobs = torch.log_softmax(self.model(given).logits[0].float(), dim=-1)
        best, ids = logprobs.max(dim=-1)
        written = best[ids != self._letters.blank]
        return ids.tolist(), float(written.mean() if written.numel() else best.mean())

    def _found(self, window: Window, ids: list[int], logprob: float, *, words: bool) -> Found:
        said = [
            (Word(text, *self._times(window, begin, end)), numbers)
            for text, begin, end, numbers in self._letters.words(ids)
        ]
        segments = [self._segment(window, some, logprob, words=words) for some in _grouped(said)]
        return Found("", segments, sum(len(numbers) for _, numbers in said))

    def _times(self, window: Window, begin: int, end: int) -> tuple[float, float]:
        """Of frames, in seconds of the recording."""
        start_s = window.time_s(begin * self._frame_s)
        return round(start_s, 2), round(max(start_s, window.time_s(end * self._frame_s, end=True)), 2)

    def _segment(
        self, window: Window, said: list[tuple[Word, tuple[int, ...]]], logprob: float, *, words: bool
    ) -> Segment:
        text = "".join(f" {word.text}" for word, _ in said)
        return Segment(
            text=text,
            start_s=said[0][0].start_s,
            end_s=said[-1][0].end_s,
            tokens=[one for _, numbers in said for one in numbers],
            seek=round(window.parts[0][1] * 100),
            temperature=0.0,
            avg_logprob=logprob,
            compression_ratio=rules.compression_ratio(text.strip()),
            no_speech_prob=0.0,
            words=tuple(word for word, _ in said) if words else (),
        )


def _grouped(said: list[tuple[Word, tuple[int, ...]]]) -> list[list[tuple[Word, tuple[int, ...]]]]:
    """Words that belong together: no long pause is between them, and they are not too many."""
    groups: list[list[tuple[Word, tuple[int, ...]]]] = []
    for word, numbers in said:
        is_new = (
            not groups
            or word.start_s - groups[-1][-1][0].end_s > _SEGMENT_GAP_S
            or word.end_s - groups[-1][0][0].start_s > _LONGEST_SEGMENT_S
        )
        if is_new:
            groups.append([])
        groups[-1].append((word, numbers))
    return groups


def read(folder: Path, config: dict[str, Any], n_vocab: int) -> tuple[Letters, bool]:
    """The vocabulary, and whether sound is normalised. Raises LoadError or FileError."""
    told = _object(folder / "tokenizer_config.json")
    numbers = model_files.read_object(folder / "vocab.json", model_files.VOCABULARY_BYTES)
    if any(isinstance(one, dict) for one in numbers.values()):
        raise LoadError("vocab.json has a vocabulary for each of several languages. hint: keep the one that is wanted")
    texts = [""] * n_vocab
    for text, number in numbers.items():
        if not isinstance(number, int) or not 0 <= number < n_vocab or len(texts) > _MOST_LETTERS:
            raise LoadError(f"vocab.json has a number that the model's {n_vocab} letters do not have")
        texts[number] = text
    delimiter = _word(told.get("word_delimiter_token", "|"))
    for special in (told.get(f"{name}_token", usual) for name, usual in _SPECIAL):
        if isinstance(number := numbers.get(_word(special)), int):
            texts[number] = ""
    blank = config.get("pad_token_id", 0)
    if not isinstance(blank, int) or not 0 <= blank < n_vocab:
        raise LoadError("config.json says no sound pad_token_id, which is what stands for no letter")
    prepared = _object(folder / "preprocessor_config.json")
    letters = Letters(tuple(texts), blank, numbers.get(delimiter), told.get("do_lower_case") is True)
    return letters, prepared.get("do_normalize", True) is not False


_SPECIAL: Final = (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))


def _word(told: Any) -> str:
    """A token as it stands in a configuration: its text, or an object with it."""
    return str(told.get("content")) if isinstance(told, dict) else str(told)


def _object(path: Path) -> dict[str, Any]:
    try:
        return model_files.read_object(path, model_files.TOKENIZER_CONFIG_BYTES)
    except model_files.MissingError:
        return {}
