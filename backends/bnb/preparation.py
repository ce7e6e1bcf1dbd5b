"""What a folder's processor makes of an image: pixel values, and by its size alone the tokens that stand for it.

A processor turns an image into pixel values, and its mark in a text into the tokens that stand for it: rows of the
image, and tokens of text around and between them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image

from backends.engine import JobError
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from backends.files.pictures import Size

_LAYOUTS_KEPT: Final = 256
_OF_TEXT: Final = frozenset({"input_ids", "attention_mask"})


class Run(NamedTuple):
    """Neighbouring rows of an image among the tokens that stand for it."""

    begin: int
    end: int
    n_positions: int
    offsets: NDArray[np.int32]
    """`(n_sections, n) int32`: positions, counted from the run's first one."""


class ImageLayout(NamedTuple):
    """What an image of some size becomes."""

    tokens: list[int]
    runs: list[Run]


class Preparation:
    """One folder's processor; for any number of threads, one at a time."""

    def __init__(
        self,
        processor: Any,
        *,
        text: str,
        row_token: int,
        image_max_tokens: int,
        positions: Callable[..., Any] | None = None,
    ) -> None:
        """`text` holds the mark of one image; `positions` is `get_rope_index` of models whose rows share positions."""
        self._processor = processor
        self._text = text
        self._row_token = row_token
        self._positions = positions
        self._turn = threading.Lock()
        self._layouts: OrderedDict[Size, ImageLayout] = OrderedDict()
        _bound(processor.image_processor, image_max_tokens)

    def layout(self, size: Size) -> ImageLayout:
        """What an image of this size becomes, told by a blank one. Raises JobError."""
        with self._turn:
            if size in self._layouts:
                self._layouts.move_to_end(size)
                return self._layouts[size]
        blank = np.zeros((size.height, size.width, 3), dtype=np.uint8)
        made = self._laid_out(self.inputs(blank))
        with self._turn:
            self._layouts[size] = made
            if len(self._layouts) > _LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        return made

    def inputs(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What the model's forward pass takes for a text of this image alone. Raises JobError."""
        try:
            with self._turn:
                made = self._processor(
                    text=self._text,
                    images=[Image.fromarray(pixels)],
                    return_tensors="pt",
                    add_special_tokens=False,
                    padding=False,
                )
        except (RuntimeError, MemoryError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as error:
            if shortage.is_shortage(error):
                raise JobError(
                    "out_of_memory", "found no memory to be prepared for its encoder", param="prompt"
                ) from None
            told = f"is none that this model's processor takes: {in_words(error)}"
            raise JobError("unsupported_media", told, param="prompt") from None
        return dict(made)

    def is_row(self, inputs: dict[str, Any]) -> torch.Tensor:
        """`(n,) bool`: which of the tokens are rows of the image."""
        found: torch.Tensor = inputs["input_ids"][0] == self._row_token
        return found

    def _laid_out(self, inputs: dict[str, Any]) -> ImageLayout:
        tokens = inputs["input_ids"][0].tolist()
        rows = self.is_row(inputs).numpy()
        borders = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]))).tolist()
        if not borders:
            raise JobError("unsupported_media", "becomes no row of this model's", param="prompt")
        positions = self._counted(inputs, len(tokens))
        runs = []
        for begin, end in zip(borders[::2], borders[1::2], strict=True):
            first = int(positions[:, :begin].max(initial=-1)) + 1
            offsets = positions[:, begin:end] - first
            runs.append(Run(begin, end, int(positions[0, end]) - first, offsets))
        return ImageLayout(tokens, runs)

    def _counted(self, inputs: dict[str, Any], n_tokens: int) -> NDArray[np.int32]:
        """`(n_sections, n_tokens + 1) int32`: positions, and that of a token of text behind all."""
        if self._positions is None:
            return np.arange(n_tokens + 1, dtype=np.int32)[None]
        told = {name: value for name, value in inputs.items() if name.endswith("grid_thw")}
        one = torch.zeros((1, 1), dtype=torch.int64)
        ids = torch.cat([inputs["input_ids"], one], dim=1)
        kinds = torch.cat([inputs["mm_token_type_ids"], one], dim=1)
        found, _ = self._positions(input_ids=ids, mm_token_type_ids=kinds, **told)
        positions: NDArray[np.int32] = found[:, 0].numpy().astype(np.int32)
        return positions


def for_the_model(inputs: dict[str, Any], *, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs where and in what the model computes."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and (name not in _OF_TEXT or name == "input_ids")
    }


def _bound(image_processor: Any, image_max_tokens: int) -> None:
    """Let an image of a model that sees in many sizes become so many rows at most."""
    size, merge = getattr(image_processor, "size", None), getattr(image_processor, "merge_size", None)
    patch = getattr(image_processor, "patch_size", None)
    if not isinstance(merge, int) or not isinstance(patch, int) or size is None or not hasattr(size, "get"):
        return
    most = image_max_tokens * (patch * merge) ** 2
    longest, shortest = size.get("longest_edge"), size.get("shortest_edge")
    if longest and longest > most:
        image_processor.size = {"longest_edge": most, "shortest_edge": min(shortest or most, most)}
