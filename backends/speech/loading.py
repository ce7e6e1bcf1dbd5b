"""From a `LoadModel` message to a running engine over transformers' Whisper, with its `Ready`'s figures."""

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
from transformers import BitsAndBytesConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.utils import logging as library_logging

from backends.backend import HeaderError
from backends.engine import LoadError
from backends.files import model_files
from backends.machine import card
from backends.machine.crash_reason import in_words
from backends.messages import Layers, LoadModel, Ready
from backends.pytorch import shortage
from backends.pytorch.measure import host_parts_beside_card, runtime_bytes, version, weight_bytes
from backends.speech import arithmetic, audio, tokens
from backends.speech.alignment import Aligner
from backends.speech.engine import SpeechEngine
from backends.speech.header import SpeechHeader, read
from backends.speech.kind import SpeechFacts, SpeechPlan
from backends.speech.recogniser import Recogniser

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_S: Final = 14400.0
_MOST_SUPPRESSED: Final = 10_000


def load(spec: LoadModel[SpeechPlan], progress: Callable[[float], None]) -> SpeechEngine:
    """Load the folder as `spec` says. Raises LoadError."""
    if (why := audio.missing()) is not None:
        raise LoadError(why)
    plan, path = spec.plan, Path(spec.path)
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LoadError("this build of PyTorch sees no GPU. hint: install one with CUDA, or use device = 'cpu'")
    free_before = card.free_bytes() if plan.device == "cuda" else None
    max_audio_s = float(spec.options.get("max_audio_s", _LONGEST_S))
    try:
        header = read(path, quantization=str(spec.options.get("quantization", "none")), max_audio_s=max_audio_s)
        generation = _generation(path)
        config = model_files.read_object(path / "config.json")
        vocabulary = model_files.read_text(path / "tokenizer.json", model_files.VOCABULARY_BYTES)
    except (HeaderError, model_files.FileError) as error:
        raise LoadError(str(error)) from None
    torch.set_num_threads(spec.threads or len(os.sched_getaffinity(0)))
    model = _model(spec, header, config, progress)
    try:
        tokenizer = Tokenizer.from_str(vocabulary)
    except Exception as error:  # the parser of strangers' files raises whatever it likes
        raise LoadError(f"tokenizer.json cannot be read: {in_words(error)}") from None
    known = tokens.read(tokenizer, generation, header.n_vocab)
    recogniser = Recogniser(
        model,
        WhisperFeatureExtractor(feature_size=header.sizes["num_mel_bins"]),
        known,
        suppressed=_ids(generation, "suppress_tokens", header.n_vocab),
        at_begin=_ids(generation, "begin_suppress_tokens", header.n_vocab),
    )
    _try(recogniser)
    progress(1.0)
    ready = Ready(
        SpeechFacts(max_audio_s=max_audio_s, n_languages=len(known.languages) or 1),
        plan.parallel,
        measured_bytes=0,
        capabilities=header.capabilities,
        layers=Layers(header.n_layers if plan.device == "cuda" else 0, header.n_layers),
        engine=version(),
    )
    return SpeechEngine(
        recogniser, Aligner(recogniser, _heads(generation, header)), _measured(ready, model, header, plan, free_before)
    )


def _model(
    spec: LoadModel[SpeechPlan], header: SpeechHeader, config: dict[str, Any], progress: Callable[[float], None]
) -> Any:
    """The model, evaluating, on its device; no class is taken from the folder. Raises LoadError."""
    device = spec.plan.device
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every multiplication in 8 bits
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    progress(0.1)
    wanted = _quantization(header)
    try:
        model, told = WhisperForConditionalGeneration.from_pretrained(
            spec.path,
            config=WhisperConfig.from_dict({key: value for key, value in config.items() if key != "auto_map"}),
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
    missing = sorted(name for name in told["missing_keys"] if name != "proj_out.weight")
    if missing:
        raise LoadError(
            f"the folder lacks {len(missing)} tensors, {missing[0]} among them. hint: was it downloaded completely?"
        )
    return model.eval().requires_grad_(requires_grad=False)


def _quantization(header: SpeechHeader) -> Any:
    if header.stored_quantised or header.quantization == "none":
        return None
    kept = ["proj_out"]
    if header.quantization == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=kept
    )


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


def _try(recogniser: Recogniser) -> None:
    """A window of silence through both sides: what it takes is measured, and what cannot compute is told now."""
    try:
        hidden = recogniser.encode([np.zeros(16_000, dtype=np.int16)])
        opening = (
            recogniser.tokens.opening("en", "transcribe")
            if recogniser.tokens.multilingual
            else [recogniser.tokens.start]
        )
        recogniser.first_logits(hidden, opening)
    except (RuntimeError, MemoryError, ValueError) as error:
        if shortage.is_shortage(error):
            message = f"no memory is left for a window: {shortage.told(error)}. hint: a smaller parallel"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"the model loads, but its first window fails: {in_words(error)}") from error


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
