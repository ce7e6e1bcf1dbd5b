"""A folder's weights in a transformers model, quantised as the operator or the folder says.

Only safetensors, only from the disk, and no code of the folder unless the operator allows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as library_logging

from backends.backend import HeaderError
from backends.bnb import attention
from backends.bnb.header import places, read
from backends.bnb.sight import HEAD, OUTSIDE_LANGUAGE
from backends.bnb.stored import EMBEDDINGS, HEADS, find, has_own_head, unused_within
from backends.engine import LoadError
from backends.files import model_files
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage
from backends.pytorch.library import Linear8bitLt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.bnb.sight import Sight
    from backends.messages import LoadModel

_KINDS: Final = {"bnb-4bit": 4, "bnb-8bit": 8, "none": 16}
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_NAMES_SHOWN: Final = 3


@dataclass(frozen=True)
class Order:
    """How the weights shall be loaded, from the options of a `LoadModel`."""

    quantization: str = "none"
    trust_remote_code: bool = False
    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "bfloat16"
    int8_threshold: float | None = None
    skip_modules: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, bool | int | float | str]) -> Order:
        """Raises LoadError for a value that is none."""
        threshold = options.get("llm_int8_threshold")
        skipped = str(options.get("llm_int8_skip_modules", ""))
        order = cls(
            quantization=str(options.get("quantization", "none")),
            trust_remote_code=options.get("trust_remote_code") is True,
            quant_type=str(options.get("bnb_4bit_quant_type", "nf4")),
            double_quant=options.get("bnb_4bit_use_double_quant", True) is True,
            compute_dtype=str(options.get("bnb_4bit_compute_dtype", "bfloat16")),
            int8_threshold=float(threshold) if isinstance(threshold, (int, float)) else None,
            skip_modules=tuple(name for name in skipped.split(",") if name),
        )
        if order.quantization not in _KINDS or order.compute_dtype not in _DTYPES:
            raise LoadError(f"quantization '{order.quantization}' with {order.compute_dtype} is not known")
        return order


@dataclass(frozen=True)
class Kind:
    """What a folder's weights are loaded as."""

    auto: Any
    """The class of transformers that finds the architecture."""
    model_types: Mapping[str, Any]
    """Those it knows."""
    does: str
    """What such a model does, for the error of an unknown one."""
    attention: str | Mapping[str, str] | None = None
    """Of its parts, `""` being the whole; None: whatever transformers takes itself."""
    stays: tuple[str, ...] = ()
    """Expressions for names of modules that are not quantised."""
    unused: tuple[str, ...] = ()
    """Beginnings of names that a checkpoint may lack, because nothing asks for these weights."""


GENERATOR: Final = Kind(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "generates text with", attention.NAME)

_ATTENTIONS: Final = {
    "": attention.NAME,
    "text_config": attention.NAME,
    "vision_config": "sdpa",
    "qformer_config": "eager",
}
_SEER: Final = Kind(
    AutoModelForImageTextToText,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "answers images with",
    _ATTENTIONS,
    stays=(OUTSIDE_LANGUAGE, HEAD),
)


def seer(sight: Sight) -> Kind:
    """A model that sees."""
    return replace(_SEER, stays=()) if sight.quantised else _SEER


def load_model(
    spec: LoadModel,
    config: dict[str, Any],
    order: Order,
    progress: Callable[[float], None],
    kind: Kind = GENERATOR,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """The model, evaluating, on its device; in `dtype`, or in what it is served in. Raises LoadError."""
    attention.install()
    known = _known_config(spec, config, order, kind)
    _believe_tensors(Path(spec.path), known)
    stored = config.get("quantization_config")
    wanted = _quantization(order, stored, stays=kind.stays)
    library_logging.set_verbosity_error()
    library_logging.set_tqdm_hook(lambda _, args, kwargs: _Progress(args, kwargs, progress))
    try:
        model, told = kind.auto.from_pretrained(
            spec.path,
            config=known,
            dtype=dtype or dtype_of(known, device=spec.plan.device, quantised=wanted is not None or stored is not None),
            trust_remote_code=order.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **({} if kind.attention is None else {"attn_implementation": kind.attention}),
            **({} if wanted is None else {"quantization_config": wanted}),
            **(
                {"device_map": {"": spec.plan.device}}
                if wanted is not None or stored or spec.plan.device == "cuda"
                else {}
            ),
        )
    except (
        OSError,
        MemoryError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        ImportError,
        AssertionError,
        AttributeError,
    ) as error:
        if shortage.is_shortage(error):
            message = f"no memory is left for the weights: {shortage.told(error)}. hint: a smaller quantization"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"transformers cannot load the folder: {in_words(error)}") from error
    finally:
        library_logging.set_tqdm_hook(None)
    _check_complete(told, kind.unused)
    _check_used(told, model)
    names = [name for name, _ in model.named_modules()]
    if absent := [part for part in order.skip_modules if wanted is not None and not any(part in n for n in names)]:
        raise LoadError(
            f"llm_int8_skip_modules has {absent[0][:60]!r}, which is in no layer's name. "
            f"hint: names are like {next((n for n in reversed(names) if n), '')}"
        )
    if order.int8_threshold is not None:
        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                module.state.threshold = order.int8_threshold
    return model.eval().requires_grad_(False)


def _known_config(spec: LoadModel, config: dict[str, Any], order: Order, kind: Kind) -> Any:
    """The configuration as transformers understands it."""
    named = config.get("model_type")
    if not order.trust_remote_code and (not isinstance(named, str) or named not in kind.model_types):
        raise LoadError(
            f"config.json says model_type = {str(named)[:60]!r}, which is no architecture that transformers "
            f"{transformers.__version__} {kind.does}. hint: a newer transformers may know it"
        )
    try:
        return AutoConfig.from_pretrained(
            spec.path,
            trust_remote_code=order.trust_remote_code,
            local_files_only=True,
            **({} if kind.attention is None else {"attn_implementation": kind.attention}),
        )
    except Exception as error:  # validation of strangers' files raises whatever it likes
        raise LoadError(f"config.json is not understood: {in_words(error)}") from error


def _believe_tensors(folder: Path, known: Any) -> None:
    """Correct what the stored tensors contradict, and an output head that is tied only in name. Raises LoadError."""
    try:
        info = read(folder)
        text = known.get_text_config()
        for key, value in info.corrected.items():
            if key in ("vocab_size", "attention_bias", "mlp_bias"):
                setattr(text, key, value)
        tied = bool(getattr(text, "tie_word_embeddings", False))
        stored = [] if info.stored_quantised else places(folder, info.tensors)
        if tied and has_own_head(find(stored, EMBEDDINGS), find(stored, HEADS), tied=True):
            text.tie_word_embeddings = known.tie_word_embeddings = False
    except (HeaderError, model_files.FileError) as error:
        raise LoadError(str(error)) from error


def _quantization(order: Order, stored: Any, *, stays: tuple[str, ...] = ()) -> Any:
    """What bitsandbytes shall do; None where nothing, or where the folder says it."""
    if isinstance(stored, dict):
        bits = 4 if stored.get("load_in_4bit") or stored.get("_load_in_4bit") else 8
        if order.quantization not in ("none", f"bnb-{bits}bit"):
            raise LoadError(
                f"the folder's weights are stored in {bits} bits, which quantization = '{order.quantization}' cannot "
                "change. hint: leave quantization out"
            )
        return None
    skipped = [*order.skip_modules, *stays] or None
    if order.quantization == "bnb-4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=order.quant_type,
            bnb_4bit_use_double_quant=order.double_quant,
            bnb_4bit_compute_dtype=_DTYPES[order.compute_dtype],
            llm_int8_skip_modules=skipped,
        )
    if order.quantization == "bnb-8bit":
        threshold = order.int8_threshold or 0.0
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skipped)
    return None


def dtype_of(config: Any, *, device: str, quantised: bool) -> torch.dtype:
    """What is computed in: the folder's type; a processor has no fast float16, so there it is one of the others."""
    stored = getattr(config.get_text_config(), "dtype", None) or config.dtype or torch.float32
    if isinstance(stored, str):
        stored = _DTYPES.get(stored, torch.float32)
    if device == "cuda" or stored == torch.bfloat16:
        return stored if stored in _DTYPES.values() else torch.bfloat16
    return torch.bfloat16 if quantised else torch.float32


def _check_complete(told: Mapping[str, Any], unused: tuple[str, ...]) -> None:
    """transformers fills what is missing with random numbers and goes on; that must not be served."""
    missing = sorted(name for name in told.get("missing_keys") or () if not name.startswith(unused))
    mismatched = list(told.get("mismatched_keys") or ())
    if mismatched:
        name, have, want = (*mismatched[0], None, None)[:3]
        raise LoadError(f"the safetensors files hold {name} with shape {_shape(have)}, config.json says {_shape(want)}")
    if missing:
        shown = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if len(missing) > _NAMES_SHOWN else "")
        raise LoadError(f"the safetensors files lack {len(missing)} tensors that config.json calls for: {shown}")


def _check_used(told: Mapping[str, Any], model: Any) -> None:
    """transformers leaves out what its class has no place for; within what it computes, that is a mistake."""
    modules = {name for name, _ in model.named_modules()}
    modules |= {name.removeprefix(f"{model.base_model_prefix}.") for name in modules}
    if wrong := unused_within(told.get("unexpected_keys") or (), modules):
        raise LoadError(
            f"the safetensors files hold {', '.join(wrong[:_NAMES_SHOWN])}, which a model as config.json describes it "
            "does not compute. hint: model_type, num_hidden_layers or a bias in config.json is wrong"
        )


def _shape(size: Any) -> str:
    return str(list(size)) if size is not None else "another one"


class _Progress:
    """Stands in for a progress bar of transformers and tells how far it is."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], tell: Callable[[float], None]) -> None:
        self._items = args[0] if args else kwargs.get("iterable", ())
        self._total = kwargs.get("total") or (len(self._items) if hasattr(self._items, "__len__") else 0)
        self._done = 0
        self._told = 0.0
        self._tell = tell

    def __iter__(self) -> Any:
        for item in self._items:
            yield item
            self.update(1)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        share = self._done / self._total if self._total else 0.0
        if share - self._told >= 0.01:
            self._told = share
            self._tell(min(share, 0.99))

    def close(self) -> None:
        """Nothing to take down."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: None


def pin_positions(model: Any, context: int) -> None:
    """Choose the stretched positions of a LongRoPE model once, by the context it is served with.

    transformers chooses them by the longest sequence of each pass: the same text would get other keys beside another
    (arXiv 2402.13753, section 3.3, has one set per context).
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) != "longrope":
            continue
        original = int(module.config.rope_parameters["original_max_position_embeddings"])
        if context > original:
            module(torch.zeros(1, 1, 1), torch.tensor([[original]]))  # computes and keeps the long ones
            module.original_inv_freq = module.long_inv_freq
