"""Gives a loaded folder its eyes: the processor that its files describe, tried with the largest image, and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.bnb.preparation import Preparation
from backends.bnb.processor import open_processor
from backends.bnb.sight import PREPARES, is_of_language
from backends.bnb.tower import FolderTower
from backends.engine import LoadError
from backends.machine.kernel import give_back_freed

if TYPE_CHECKING:
    from backends.bnb.header import FolderInfo
    from backends.bnb.sight import Sight
    from backends.generation.tokenizer import Tokenizer
    from backends.messages import LoadModel


def processor_of(spec: LoadModel, info: FolderInfo, source: Any) -> Any:
    """What prepares the folder's images, None where it reads text alone; its template is the tokenizer's where that has
    none. Raises LoadError.
    """
    if info.sight is None:
        return None
    processor = open_processor(Path(spec.path), info.sight.type)
    if not source.chat_template:
        source.chat_template = getattr(processor, "chat_template", None) or info.sight.template
    return processor


def open_for(spec: LoadModel, model: Any, info: FolderInfo, processor: Any, tokenizer: Tokenizer) -> FolderTower | None:
    """The folder's tower where it has one: the largest image is encoded once. Raises LoadError."""
    if processor is None or info.sight is None:
        return None
    row_token = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    if not isinstance(row_token, int):
        raise LoadError("config.json does not say which token stands for an image (image_token_id)")
    preparation = Preparation(
        processor,
        text=_shown(processor, info.sight, tokenizer),
        row_token=row_token,
        image_max_tokens=info.image_max_tokens,
        positions=getattr(model.base_model, "get_rope_index", None),
    )
    tower = FolderTower(
        model,
        preparation,
        salt=f"{info.file_bytes} {info.image_max_tokens} {identity(spec)}",
        most_kept_bytes=info.sight.kept_bytes(info.image_max_tokens, info.number("hidden_size")),
        sight=info.sight,
    )
    tower.warm_up()
    give_back_freed()
    return tower


def _shown(processor: Any, sight: Sight, tokenizer: Tokenizer) -> str:
    """The text of one image."""
    if sight.leads:  # the processor puts its tokens before any text
        return ""
    mark, template = str(processor.image_token), tokenizer.tool_template
    return mark if template is None else template.around_image(mark)


def language_of(model: Any) -> Any:
    """What computes tokens: a language model that is whole inside the model, or the model itself."""
    decoder = model.get_decoder()
    return decoder if decoder.get_output_embeddings() is not None else model


def weight_bytes(model: Any, info: FolderInfo) -> int:
    """Of the loaded part that sees."""
    if info.sight is None:
        return 0
    return sum(weight.nbytes for name, weight in model.named_parameters() if not is_of_language(name))


def identity(spec: LoadModel) -> str:
    """What the rows of an image depend on beside the weights."""
    files = (Path(spec.path) / name for name in PREPARES)
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return f"{told} {spec.options.get('image_max_tokens')}"
