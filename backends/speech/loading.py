"""From a `LoadModel` message to a running engine over transformers' models that hear, with its `Ready`'s figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})  # read when the libraries are imported

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    BitsAndBytesConfig,
    HubertConfig,
    HubertForCTC,
    SeamlessM4TFeatureExtractor,
    SeamlessM4Tv2Config,
    SeamlessM4Tv2ForSpeechToText,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging as library_logging

from backends.backend import HeaderError
from backends.engine import LoadError
from backends.files import model_files
from backends.files.recordings import missing
from backends.machine import card
from backends.machine.crash_reason import in_words
from backends.messages import Layers, LoadModel, Ready
from backends.pytorch import shortage
from backends.pytorch.measure import host_parts_beside_card, runtime_bytes, version, weight_bytes
from backends.speech import arithmetic, ctc, seamless, tokens
from backends.speech.alignment import Aligner
from backends.speech.ctc_header import CtcHeader
from backends.speech.engine import SpeechEngine
from backends.speech.header import SpeechHeader
from backends.speech.kind import SpeechFacts, SpeechPlan
from backends.speech.reading import read
from backends.speech.recogniser import Recogniser
from backends.speech.seamless_header import TOKENIZER, SeamlessHeader
from backends.speech.whisper import WhisperListener

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.speech.listening import Listener

_LONGEST_S: Final = 14400.0
_UNUSED: Final = (
    "proj_out.weight",
    "wav2vec2.masked_spec_embed",
    "hubert.masked_spec_embed",
)
"""Tensors that folders leave out: tied to others, or for training alone."""
_MOST_SUPPRESSED: Final = 10_000


def load(spec: LoadModel[SpeechPlan], progress: Callable[[float], None]) -> SpeechEngine:
    """Load the folder as `spec` says. Raises LoadError."""
    if (why := missing()) is not None:
        raise LoadError(why)
    plan, path = spec.plan, Path(spec.path)
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LoadError("this build of PyTorch sees no GPU. hint: install one with CUDA, or use device = 'cpu'")
    free_before = card.free_bytes() if plan.device == "cuda" else None
    max_audio_s = float(spec.options.get("max_audio_s", _LONGEST_S))
    try:
        header = read(path, quantization=str(spec.options.get("quantization", "none")), max_audio_s=max_audio_s)
        config = model_files.read_object(path / "config.json")
        torch.set_num_threads(spec.threads or len(os.sched_getaffinity(0)))
        loaded = (
            _ctc if isinstance(header, CtcHeader) else _seamless if isinstance(header, SeamlessHeader) else _whisper
        )
        listener, model, n_languages = loaded(spec, header, config, progress)
    except (HeaderError, model_files.FileError) as error:
        raise LoadError(str(error)) from None
    progress(1.0)
    ready = Ready(
        SpeechFacts(max_audio_s=max_audio_s, n_languages=n_languages),
        plan.parallel,
        measured_bytes=0,
        capabilities=header.capabilities,
        layers=Layers(header.n_layers if plan.device == "cuda" else 0, header.n_layers),
        engine=version(),
    )
    return SpeechEngine(listener, _measured(ready, model, header, plan, free_before))


def _whisper(
    spec: LoadModel[SpeechPlan], header: SpeechHeader, config: dict[str, Any], progress: Callable[[float], None]
) -> tuple[Listener, Any, int]:
    """The listener, its model and how many languages it knows. Raises LoadError, HeaderError or FileError."""
    path = Path(spec.path)
    generation = _generation(path)
    vocabulary = model_files.read_text(path / "tokenizer.json", model_files.VOCABULARY_BYTES)
    model = _model(spec, header, (WhisperForConditionalGeneration, WhisperConfig), config, progress)
    if arithmetic.has_own_head(header, spec.plan.device):
        _compute_in_integers(model, "proj_out")
    known = tokens.read(_tokenizer(vocabulary), generation, header.n_vocab)
    recogniser = Recogniser(
        model,
        WhisperFeatureExtractor(feature_size=header.sizes["num_mel_bins"]),
        known,
        suppressed=_ids(generation, "suppress_tokens", header.n_vocab),
        at_begin=_ids(generation, "begin_suppress_tokens", header.n_vocab),
    )
    _try(lambda: _first_window(recogniser))
    aligner = Aligner(recogniser, _heads(generation, header))
    return WhisperListener(recogniser, aligner), model, len(known.languages) or 1


def _ctc(
    spec: LoadModel[SpeechPlan], header: SpeechHeader, config: dict[str, Any], progress: Callable[[float], None]
) -> tuple[Listener, Any, int]:
    """The same of a model that writes a letter for each frame."""
    kinds = {
        "wav2vec2": (Wav2Vec2ForCTC, Wav2Vec2Config),
        "hubert": (HubertForCTC, HubertConfig),
    }
    if not isinstance(header, CtcHeader):
        raise TypeError("not a header of such a model")
    letters, normalise = ctc.read(Path(spec.path), config, header.n_vocab)
    model = _model(spec, header, kinds[header.model_type], config, progress)
    listener = ctc.CtcListener(model, letters, normalise=normalise, frame_s=header.frame_s)
    _try(lambda: listener.letters(np.zeros(16_000, dtype=np.int16)))
    return listener, model, 1


def _seamless(
    spec: LoadModel[SpeechPlan], header: SpeechHeader, config: dict[str, Any], progress: Callable[[float], None]
) -> tuple[Listener, Any, int]:
    """The same of a model that writes in the language that is asked for."""
    path = Path(spec.path)
    vocabulary = model_files.read_text(path / TOKENIZER, model_files.VOCABULARY_BYTES)
    known = seamless.read(_tokenizer(vocabulary), _generation(path), config, header.n_vocab)
    model = _model(spec, header, (SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2Config), config, progress)
    if arithmetic.has_own_head(header, spec.plan.device):
        _compute_in_integers(model, "lm_head")
    listener = seamless.SeamlessListener(model, SeamlessM4TFeatureExtractor(), known)
    _try(lambda: listener.first_logits(listener.encode(np.zeros(16_000, dtype=np.int16))))
    return listener, model, len(known.languages)


def _tokenizer(vocabulary: str) -> Tokenizer:
    """Raises LoadError."""
    try:
        return Tokenizer.from_str(vocabulary)
    except Exception as error:  # the parser of strangers' files raises whatever it likes
        raise LoadError(f"tokenizer.json cannot be read: {in_words(error)}") from None


def _model(
    spec: LoadModel[SpeechPlan],
    header: SpeechHeader,
    kind: tuple[Any, Any],
    config: dict[str, Any],
    progress: Callable[[float], None],
) -> Any:
    """The model, evaluating, on its device; no class is taken from the folder. Raises LoadError."""
    device = spec.plan.device
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every multiplication in 8 bits
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    progress(0.1)
    wanted = _quantization(header)
    try:
        model, told = kind[0].from_pretrained(
            spec.path,
            config=kind[1].from_dict({key: value for key, value in config.items() if key != "auto_map"}),
            dtype=torch.float16 if device == "cuda" else torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            **({} if wanted is None else {"quantization_config": wanted}),
            **(
                {"device_map": {"": device}}
                if wanted is not None or header.stored_quantised or device == "cuda"
                else {}
            ),
        )
    except Exception as error:  # whatever a folder makes the library raise is a failed load
        if shortage.is_shortage(error):
            message = f"no memory is left for the weights: {shortage.told(error)}. hint: a smaller quantization"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"transformers cannot load the folder: {in_words(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if name not in _UNUSED)
    if missing:
        raise LoadError(
            f"the folder lacks {len(missing)} tensors, {missing[0]} among them. hint: was it downloaded completely?"
        )
    return model.eval().requires_grad_(requires_grad=False)


def _quantization(header: SpeechHeader) -> Any:
    if header.stored_quantised or header.quantization == "none":
        return None
    kept = ["proj_out", "lm_head"]
    if header.quantization == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=kept
    )


def _compute_in_integers(model: Any, head: str) -> None:
    """On a processor bitsandbytes' own way is slower than no quantisation; nor does it touch the output head."""
    from backends.pytorch import linear  # imports bitsandbytes

    if (made := linear.integer_copy(getattr(model, head))) is not None:
        model.set_submodule(head, made)
        linear.make_rows_independent(model)


def _generation(path: Path) -> dict[str, Any]:
    """generation_config.json; without it nothing is suppressed and no head is known to follow the sound."""
    try:
        return model_files.read_object(path / "generation_config.json")
    except model_files.MissingError:
        return {}


def _ids(generation: dict[str, Any], key: str, n_vocab: int) -> list[int]:
    found = generation.get(key)
    listed = found if isinstance(found, list) else []
    return [one for one in listed[:_MOST_SUPPRESSED] if isinstance(one, int) and 0 <= one < n_vocab]


def _heads(generation: dict[str, Any], header: SpeechHeader) -> Sequence[tuple[int, int]]:
    """Those that follow the sound; all of the upper half where the folder does not say."""
    layers, heads = header.sizes["decoder_layers"], header.sizes["decoder_attention_heads"]
    told = generation.get("alignment_heads")
    pairs = [tuple(one) for one in told if isinstance(one, list) and len(one) == 2] if isinstance(told, list) else []
    known = [
        (layer, head)
        for layer, head in pairs
        if isinstance(layer, int) and isinstance(head, int) and 0 <= layer < layers and 0 <= head < heads
    ]
    return known or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def _try(first_window: Callable[[], object]) -> None:
    """A window through the model: what it takes is measured, and what cannot compute is told now. Raises LoadError."""
    try:
        first_window()
    except (RuntimeError, MemoryError, ValueError) as error:
        if shortage.is_shortage(error):
            message = f"no memory is left for a window: {shortage.told(error)}. hint: a smaller parallel"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"the model loads, but its first window fails: {in_words(error)}") from error


def _first_window(recogniser: Recogniser) -> None:
    """Silence through both sides."""
    hidden = recogniser.encode([np.zeros(16_000, dtype=np.int16)])
    known = recogniser.tokens
    recogniser.first_logits(
        recogniser.sound(hidden), known.opening("en", "transcribe") if known.multilingual else [known.start]
    )


def _measured(
    ready: Ready[SpeechFacts], model: Any, header: SpeechHeader, plan: SpeechPlan, free_before: int | None
) -> Ready[SpeechFacts]:
    """With what this process takes once all its windows are in use."""
    import msgspec

    kv, compute = arithmetic.kv_bytes(header, plan), arithmetic.compute_bytes(header, plan)
    parts = {"weights": weight_bytes(model), "kv": kv, "compute": compute}
    recordings = {"audio": plan.parallel * arithmetic.AUDIO_BYTES}
    if plan.device == "cpu":
        parts = {**parts, "runtime": runtime_bytes(model, beside=0), **recordings}
        return msgspec.structs.replace(ready, parts=parts, measured_bytes=sum(parts.values()))
    free_after = card.free_bytes()
    if free_before is None or free_after is None:
        return ready
    parts["runtime"] = max(0, free_before - free_after - parts["weights"])
    host = {**host_parts_beside_card(), **recordings}
    return msgspec.structs.replace(ready, parts=parts, host_parts=host, measured_bytes=sum(parts.values()))
