"""Opens a folder's processor: transformers' class that knows how images of such a model are prepared. Pillow only.

Parts that read videos or sounds are left out: they would need torchvision, which breaks beside another PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import transformers
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from backends.bnb.sight import PREPARES
from backends.engine import LoadError
from backends.files import model_files
from backends.machine.crash_reason import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INSTEAD: Final = {"SmolVLMProcessor": "Idefics3Processor"}
"""The same images and tokens; the former wants a package that spells numbers, for its videos."""


def open_processor(path: Path, model_type: str) -> Any:
    """The folder's own. Raises LoadError."""
    known = frozenset(PROCESSOR_MAPPING_NAMES.values())
    name = next((name for name in _named(path) if name in known), PROCESSOR_MAPPING_NAMES.get(model_type))
    try:
        made = _images_alone(getattr(transformers, _INSTEAD.get(name, name)))
        processor = made.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the parsers of strangers' files raise whatever they like
        raise LoadError(f"how the folder wants images prepared cannot be read: {in_words(error)}") from error
    if getattr(processor, "image_token", None) is None:
        raise LoadError("the folder's processor reads no images. hint: is preprocessor_config.json the model's own?")
    return processor


def _named(path: Path) -> Iterator[str]:
    """The classes that the folder's files name."""
    for file in (*reversed(PREPARES), "tokenizer_config.json"):
        try:
            told = model_files.read_object(path / file).get("processor_class")
        except model_files.FileError:
            continue
        if isinstance(told, str):
            yield told


def _images_alone(processor: Any) -> Any:
    """The class without its other senses."""

    class ImagesAlone(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

        @classmethod
        def _get_arguments_from_pretrained(
            cls, pretrained_model_name_or_path: Path, processor_dict: Any = None, **kwargs: Any
        ) -> list[Any]:
            local = {"trust_remote_code": False, "local_files_only": True}
            parts = {
                "image_processor": lambda: AutoImageProcessor.from_pretrained(
                    pretrained_model_name_or_path, backend="pil", **local
                ),
                "tokenizer": lambda: AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **local),
            }
            return [parts[name]() if name in parts else None for name in cls.get_attributes()]

    return ImagesAlone
