"""The model that is taught: its folder checked and loaded as serving loads it, then made to learn (LoRA or in full).

Nothing is fetched, no code of the folder runs, no pickle is read.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})  # read when the libraries are imported

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from backends.backend import HeaderError
from backends.bnb import folder
from backends.bnb.body import tokenizer_of
from backends.bnb.header import read
from backends.bnb.vocabulary import FolderVocabulary
from backends.bnb.weights import Kind, Order, load_model
from backends.engine import LoadError
from backends.files.adapters import MOST_RANK
from backends.files.model_files import FileError, opened
from backends.generation.tokenizer import Tokenizer
from backends.messages import GeneratorPlan, LoadModel
from backends.messages.training import ALL_LINEAR
from backends.pytorch.library import Linear4bit
from backends.training.encoding import Encoder
from backends.training.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.bnb.header import FolderInfo
    from backends.messages.training import Recipe

_QUANTIZATIONS: Final = {"none": "none", "8bit": "bnb-8bit", "nf4": "bnb-4bit"}
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096
_KINDS: Final = {"lora": ("none", "8bit", "nf4"), "qlora": ("8bit", "nf4"), "full": ("none",)}


@dataclass
class Base:
    """A loaded model that learns."""

    model: Any
    info: FolderInfo
    encoder: Encoder
    pad: int
    dtype: torch.dtype
    """What is computed in."""
    fingerprint: str
    """Of the folder's weights: see `fingerprint`."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those that learn, by the names they are stored under: an adapter's are those that peft writes."""
        return {
            name.replace(".default.", "."): value
            for name, value in self.model.named_parameters()
            if value.requires_grad
        }


def open_base(recipe: Recipe, progress: Callable[[float], None]) -> Base:
    """Load it. Raises TrainError; a shortage of memory is one of code `out_of_memory`."""
    _check_recipe(recipe)
    path = Path(recipe.base)
    order = Order(_QUANTIZATIONS[recipe.quantization], compute_dtype=str(compute_dtype(recipe)).removeprefix("torch."))
    try:
        info = read(path, order.quantization)
        _check_info(info, recipe)
        config = folder.check(path, trust_remote_code=False)
        source = tokenizer_of(path, order)
        model = load_model(_spec(recipe), config, order, progress, _kind(info), dtype=_stored_in(recipe))
        seen = fingerprint(path)
    except (HeaderError, FileError) as error:
        raise TrainError("bad_model", f"{path.name}: {error}") from error
    except LoadError as error:
        code = "out_of_memory" if error.out_of_memory else "bad_model"
        raise TrainError(code, f"{path.name}: {error.message}") from error  # type: ignore[arg-type]
    ends = {int(end) for end in _all(model.generation_config.eos_token_id, source.eos_token_id)}
    vocabulary = FolderVocabulary(source, n_vocab=int(model.config.vocab_size), ends=ends)
    encoder = Encoder(Tokenizer(vocabulary), vocabulary, eos=source.eos_token_id)
    model = _made_to_learn(model, recipe)
    return Base(model, info, encoder, next(iter(sorted(ends)), 0), compute_dtype(recipe), seen)


def fingerprint(path: Path) -> str:
    """What tells a folder's weights from others of the same shape: bytes from all over its files. Raises FileError."""
    found = hashlib.sha256()
    for place in sorted(path.glob("*.safetensors")):
        with opened(place) as file:
            found.update(f"{place.name} {file.size}".encode())
            for n in range(_SAMPLES):
                found.update(file.at(n * file.size // _SAMPLES, _SAMPLE_BYTES))
    return found.hexdigest()


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """bfloat16 on cards that have it; float32 elsewhere, where it is faster or right alone."""
    on_card = recipe.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if on_card else torch.float32


def _stored_in(recipe: Recipe) -> torch.dtype:
    """Weights that learn are float32: a step is often smaller than what bfloat16 can tell apart."""
    return torch.float32 if recipe.method == "full" else compute_dtype(recipe)


def _check_recipe(recipe: Recipe) -> None:
    """Raises TrainError."""
    if recipe.quantization not in _KINDS[recipe.method]:
        allowed = " or ".join(_KINDS[recipe.method])
        raise TrainError("failed", f"method {recipe.method} takes quantization {allowed}, not {recipe.quantization}")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("failed", "this build of PyTorch sees no GPU. hint: install one with CUDA, or device = cpu")
    if not 0 < recipe.rank <= MOST_RANK or recipe.micro_batch < 1 or recipe.accumulation < 1 or recipe.n_epochs < 1:
        raise TrainError("failed", f"rank is 1 to {MOST_RANK}; micro_batch, accumulation and n_epochs are 1 or more")


def _check_info(info: FolderInfo, recipe: Recipe) -> None:
    """Raises HeaderError."""
    if info.gives != "text" or info.sight is not None:
        kind = "reads images" if info.sight is not None else f"gives {info.gives}"
        raise HeaderError(f"it {kind}, and models that read and write text alone are taught")
    if recipe.method == "full" and info.stored_quantised:
        raise HeaderError("its weights are stored quantised, and cannot learn. hint: method qlora, or the whole folder")
    if info.n_ctx_train and recipe.max_length > info.n_ctx_train:
        raise HeaderError(f"it has {info.n_ctx_train} positions, and max_length is {recipe.max_length}")


def _spec(recipe: Recipe) -> LoadModel:
    plan = GeneratorPlan(recipe.max_length, 1, device=recipe.device)
    return LoadModel(name=Path(recipe.base).name, backend="", path=recipe.base, plan=plan)


def _kind(info: FolderInfo) -> Kind:
    """With the attention that transformers takes itself; the fast one knows no cap of the scores."""
    capped = info.config.get("attn_logit_softcapping") is not None
    return Kind(
        AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "generates text with", "eager" if capped else "sdpa"
    )


def _all(*ids: Any) -> Iterator[int]:
    for one in ids:
        yield from () if one is None else one if isinstance(one, list) else (one,)


def _made_to_learn(model: Any, recipe: Recipe) -> Any:
    """Raises TrainError."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # that way knows no gradient
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    if recipe.method == "full":
        model.requires_grad_(True)
    else:
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,  # type: ignore[arg-type]
            target_modules=targets(model, recipe.targets),
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        torch.manual_seed(recipe.seed)
        model = get_peft_model(model, config)
        config.base_model_name_or_path = Path(recipe.base).name  # the library writes the whole path of the folder
    return model.train()


def targets(model: Any, wanted: str | tuple[str, ...]) -> list[str]:
    """Names of the linear layers that get an adapter: their ends, or the whole where an end means others too.

    The output head has none, nor have experts, whose adapters are not served. Raises TrainError.
    """
    head = model.get_output_embeddings()
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head and ".experts." not in name
    ]
    ends = sorted({name.rpartition(".")[2] for name in layers})
    if wanted != ALL_LINEAR:
        asked = (wanted,) if isinstance(wanted, str) else wanted
        if unknown := [end for end in asked if end not in ends]:
            raise TrainError("failed", f"no linear layer is called {unknown[0][:60]}. hint: {', '.join(ends[:20])}")
        layers = [name for name in layers if name.rpartition(".")[2] in asked]
        ends = sorted(set(asked))
    if not layers:
        raise TrainError("bad_model", "the model has no linear layer that an adapter could be for")
    others = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends} - set(layers)
    return sorted(layers) if others else ends
