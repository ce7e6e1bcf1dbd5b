"""SeamlessM4T-v2 as a listener: speech in any of its languages becomes text in the one that is asked for.

It writes no times and cannot tell which language it hears, so each window is one segment and `language` is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.engine import JobError, LoadError
from backends.speech import rules
from backends.speech.kind import Segment, Transcribe
from backends.speech.listening import Asked, Found
from backends.speech.tokens import code_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from backends.speech.windows import Window

_TOKENS_PER_TURN: Final = 16
"""Between two of them other work has its turn."""
_WRITTEN: Final = (
    "af:afr am:amh ar:arb as:asm az:azj be:bel bg:bul bn:ben bs:bos ca:cat cs:ces cy:cym da:dan de:deu el:ell "
    "en:eng es:spa et:est eu:eus fa:pes fi:fin fr:fra gl:glg gu:guj he:heb hi:hin hr:hrv hu:hun hy:hye id:ind "
    "is:isl it:ita ja:jpn jw:jav ka:kat kk:kaz km:khm kn:kan ko:kor lo:lao lt:lit lv:lvs mk:mkd ml:mal mn:khk "
    "mr:mar ms:zlm mt:mlt my:mya ne:npi nl:nld nn:nno no:nob oc:oci pa:pan pl:pol ps:pbt pt:por ro:ron ru:rus "
    "sd:snd sk:slk sl:slv sn:sna so:som sr:srp sv:swe sw:swh ta:tam te:tel tg:tgk th:tha tl:tgl tr:tur uk:ukr "
    "ur:urd uz:uzn vi:vie yo:yor yue:yue zh:cmn"
)
_CODES: Final = dict(pair.split(":") for pair in _WRITTEN.split())
"""Of languages, by Whisper's codes, which clients send."""


@dataclass(frozen=True)
class Vocabulary:
    """How the decoder begins and ends."""

    tokenizer: Tokenizer
    start: int
    end: int
    languages: Mapping[str, int]
    """By the model's own codes, such as `deu`."""
    most: int
    """Tokens of a window."""

    def language(self, said: str) -> tuple[str, int]:
        """The code for answers, and the token. Raises JobError."""
        code = code_of(said) or said.strip().lower()
        token = self.languages.get(_CODES.get(code, code))
        if token is None:
            told = f"{said[:40]!r} is no language that this model writes. hint: its code, such as 'en' or 'de'"
            raise JobError("invalid_value", told, param="language")
        return code, token


def read(tokenizer: Tokenizer, generation: Mapping[str, Any], config: Mapping[str, Any], n_vocab: int) -> Vocabulary:
    """Raises LoadError where the folder does not say how a text begins."""

    def number(key: str, usual: int) -> int:
        found = generation.get(key, config.get(key, usual))
        if not isinstance(found, int) or not 0 <= found < n_vocab:
            raise LoadError(f"the folder says no sound {key}. hint: take its files as their publisher has them")
        return found

    told = generation.get("text_decoder_lang_to_code_id")
    known = told if isinstance(told, dict) else {}
    languages = {str(code): one for code, one in known.items() if isinstance(one, int) and 0 <= one < n_vocab}
    if not languages:
        raise LoadError("generation_config.json has no text_decoder_lang_to_code_id. hint: copy the model's own")
    most = max(1, min(number("max_new_tokens", 256), rules.MOST_TOKENS))
    return Vocabulary(tokenizer, number("decoder_start_token_id", 3), number("eos_token_id", 3), languages, most)


class SeamlessListener:
    """See `backends.speech.listening.Listener`."""

    def __init__(self, model: Any, extractor: Any, vocabulary: Vocabulary) -> None:
        self._model = model
        self._extractor = extractor
        self._vocabulary = vocabulary
        self._dtype = model.speech_encoder.feature_projection.layer_norm.weight.dtype

    def asked(self, job: Transcribe) -> Asked:
        """What it writes. Raises JobError for what it cannot do."""
        if job.words:
            told = "this model writes no times of words. hint: leave timestamp_granularities out, or take a Whisper"
            raise JobError("unsupported_parameter", told, param="timestamp_granularities")
        if job.prompt:
            raise JobError("unsupported_parameter", "this model takes no prompt. hint: leave it out", param="prompt")
        if job.temperature > 0:
            told = "this model writes the likeliest tokens alone. hint: leave temperature out"
            raise JobError("unsupported_parameter", told, param="temperature")
        said = "en" if job.task == "translate" else job.language
        if said is None:
            told = "this model does not tell languages apart. hint: say which to write, such as language 'de'"
            raise JobError("invalid_value", told, param="language")
        return Asked(job.task, self._vocabulary.language(said)[0], [], 0.0, words=False)

    def listen(self, windows: Sequence[Window], asked: Sequence[Asked]) -> Generator[None, None, list[Found | None]]:
        """A window at a time: their sounds have as many positions as they are long."""
        found: list[Found | None] = []
        for window, one in zip(windows, asked, strict=True):
            code, token = self._vocabulary.language(one.code or "")
            hidden = self.encode(window.samples)
            yield
            ids, logprob = yield from self._decode(hidden, token)
            found.append(self._found(window, code, ids, logprob) if math.isfinite(logprob) else None)
            yield
        return found

    @torch.inference_mode()
    def encode(self, samples: NDArray[np.int16]) -> torch.Tensor:
        """`(1, positions, width)`."""
        sound = samples.astype(np.float32) / 32768
        made = self._extractor([sound], sampling_rate=16_000, return_tensors="pt")
        features = made["input_features"].to(self._model.device, self._dtype)
        heard = self._model.speech_encoder(input_features=features, attention_mask=None)
        hidden: torch.Tensor = heard.last_hidden_state
        return hidden

    def first_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(vocab,)` behind the opening of the first language."""
        token = next(iter(self._vocabulary.languages.values()))
        return self._logits(hidden, [self._vocabulary.start, token], None)[0]

    def _decode(self, hidden: torch.Tensor, language: int) -> Generator[None, None, tuple[list[int], float]]:
        """The likeliest tokens, and their mean log-probability."""
        ids: list[int] = []
        total, given, cache = 0.0, [self._vocabulary.start, language], None
        for count in range(self._vocabulary.most):
            logits, cache = self._logits(hidden, given, cache)
            logprobs = torch.log_softmax(logits, dim=-1)
            chosen = int(logprobs.argmax())
            total += float(logprobs[chosen])
            if chosen == self._vocabulary.end:
                break
            ids.append(chosen)
            given = [chosen]
            if count % _TOKENS_PER_TURN == _TOKENS_PER_TURN - 1:
                yield
        return ids, total / (len(ids) + 1)

    @torch.inference_mode()
    def _logits(self, hidden: torch.Tensor, given: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """`(vocab,)` float32 behind these tokens, and the caches with them."""
        answer = self._model.text_decoder(
            input_ids=torch.tensor([given], device=hidden.device),
            encoder_hidden_states=hidden,
            cache=cache,
            use_cache=True,
        )
        return self._model.lm_head(answer.last_hidden_state[:, -1])[0].float(), answer.cache

    def _found(self, window: Window, code: str, ids: list[int], logprob: float) -> Found:
        text = self._vocabulary.tokenizer.decode(ids, skip_special_tokens=True).strip()
        segment = Segment(
            text=f" {text}",
            start_s=round(window.time_s(0.0), 2),
            end_s=round(window.time_s(window.duration_s, end=True), 2),
            tokens=ids,
            seek=round(window.parts[0][1] * 100),
            temperature=0.0,
            avg_logprob=logprob,
            compression_ratio=rules.compression_ratio(text),
            no_speech_prob=0.0,
        )
        return Found(code, [segment] if text else [], len(ids))
