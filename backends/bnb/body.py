"""A folder's model that generates text, loaded: with its vocabulary, its eyes and its cells."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer

from backends.bnb import eyes, tokenizer_file
from backends.bnb.attention import Survey, UnsupportedAttentionError
from backends.bnb.context import BnbContext
from backends.bnb.joined_rows import JoinedRows
from backends.bnb.kv import KvCache, LayerShape
from backends.bnb.runner import Runner
from backends.bnb.sight import is_of_language
from backends.bnb.vocabulary import FolderVocabulary
from backends.bnb.weights import GENERATOR, Order, load_model, pin_positions, seer
from backends.engine import LoadError
from backends.files.model_files import statuses_of
from backends.generation.readiness import making_guides
from backends.generation.tokenizer import Tokenizer
from backends.machine.crash_reason import in_words
from backends.messages import GeneratorPlan
from backends.plan import BATCH_TOKENS
from backends.pytorch import linear, shortage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backends.bnb.header import FolderInfo
    from backends.messages import LoadModel

_WARM_TOKENS: Final[Mapping[str, int]] = MappingProxyType({"cpu": 32, "cuda": BATCH_TOKENS})
"""A card's allocator keeps what the longest pass took; on a processor that pass would only be a wait."""


class Body(NamedTuple):
    """See the module's text."""

    model: Any
    vocabulary: FolderVocabulary
    tokenizer: Tokenizer
    cache: KvCache
    context: BnbContext
    n_layers: int
    dtype: torch.dtype
    step_s: float
    """What a step of one row took."""

    def close(self) -> None:
        """Free it."""
        self.context.close()
        self.vocabulary.close()


def open_body(
    spec: LoadModel, told: dict[str, Any], info: FolderInfo, source: Any, progress: Callable[[float], None]
) -> Body:
    """Load the weights and make the cells. `told` is the folder's configuration. Raises LoadError."""
    plan, order = spec.plan, Order.of(spec.options)
    assert isinstance(plan, GeneratorPlan)
    seen = repr(statuses_of(sorted(Path(spec.path).glob("*.safetensors"))))  # before they are read
    processor = eyes.processor_of(spec, info, source)
    model = load_model(spec, told, order, progress, GENERATOR if info.sight is None else seer(info.sight))
    pin_positions(model, plan.context)
    device = torch.device(plan.device)
    if device.type == "cpu":
        linear.make_rows_independent(model, within=is_of_language if info.sight is not None else None)
    config = model.config.get_text_config()
    runner = Runner(model if info.sight is None else eyes.language_of(model), device=device)
    dtype = model.get_input_embeddings().weight.dtype
    vocabulary = FolderVocabulary(source, n_vocab=int(config.vocab_size), ends=_ends(model, source))
    vocabulary.identity = seen
    tokenizer = Tokenizer(vocabulary)
    with making_guides(tokenizer):
        shapes = _survey(runner, config, spec)
        vocabulary.tower = eyes.open_for(spec, model, info, processor, tokenizer)
    try:
        cache = KvCache(
            shapes,
            n_rows=plan.parallel,
            context=plan.context,
            budget_cells=plan.cells,
            pass_tokens=BATCH_TOKENS,
            dtype=dtype,
            device=device,
        )
        joined = None if vocabulary.tower is None else JoinedRows()
        context = BnbContext(runner, cache, vocabulary=vocabulary, max_batch=BATCH_TOKENS, joined=joined)
        context.warm_up(_WARM_TOKENS[device.type])
        step_s = context.warm_up(1)
    except (RuntimeError, MemoryError) as error:
        if shortage.is_shortage(error):
            message = f"no memory is left for the KV cache: {shortage.told(error)}. hint: a smaller context or parallel"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"the model loads, but its first pass fails: {in_words(error)}") from error
    return Body(model, vocabulary, tokenizer, cache, context, len(shapes), dtype, step_s)


def tokenizer_of(path: Path, order: Order) -> Any:
    """A fast tokenizer of transformers. Raises LoadError."""
    tokenizer_file.check(path)
    try:
        source = AutoTokenizer.from_pretrained(
            path, trust_remote_code=order.trust_remote_code, local_files_only=True, use_fast=True
        )
    except Exception as error:  # the parsers of strangers' files raise whatever they like
        raise LoadError(f"the folder's tokenizer cannot be read: {in_words(error)}") from error
    if not getattr(source, "is_fast", False):
        raise LoadError("the folder's tokenizer has no tokenizer.json, and none can be made of what is there")
    return source


def _survey(runner: Runner, config: Any, spec: LoadModel) -> list[LayerShape]:
    """What each layer asks of the cache, found by a pass at the last position. Raises LoadError."""
    survey = Survey()
    last = np.array([spec.plan.context - 1], dtype=np.int32)
    try:
        runner.forward(np.zeros(1, dtype=np.int32), last, np.zeros(1, dtype=np.intp), survey)
    except IndexError as error:
        limit = getattr(config, "max_position_embeddings", "fewer")
        raise LoadError(f"the model has {limit} positions, context = {spec.plan.context} asks for more") from error
    except UnsupportedAttentionError as error:
        raise LoadError(f"a {config.model_type} model cannot be served: {error}") from error
    except Exception as error:  # whatever an architecture does without a cache
        if shortage.is_shortage(error):
            message = f"no memory is left for a pass of one token: {shortage.told(error)}. hint: a smaller quantization"
            raise LoadError(message, out_of_memory=True) from error
        raise LoadError(f"a {config.model_type} model cannot be served: {in_words(error)}") from error
    kinds = list(getattr(config, "layer_types", None) or [])
    n_layers = int(config.num_hidden_layers)
    strange = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if strange or sorted(survey.found) != list(range(n_layers)):
        what = f"layers of kind {', '.join(strange)}" if strange else "layers that don't attend in the usual way"
        raise LoadError(f"a {config.model_type} model has {what}, for which this backend has no cache")
    shapes = []
    for index in range(n_layers):
        seen = survey.found[index]
        slides = seen.window is None and index < len(kinds) and kinds[index] == "sliding_attention"
        window = int(config.sliding_window) if slides else seen.window
        shapes.append(LayerShape(seen.n_heads, seen.key_size, seen.value_size, window))
    return shapes


def _ends(model: Any, source: Any) -> set[int]:
    """Tokens that end a generation: the configurations' and the tokenizer's."""
    told = (
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        source.eos_token_id,
    )
    return {int(token) for one in told for token in (one if isinstance(one, list) else [one]) if token is not None}
