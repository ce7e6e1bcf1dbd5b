"""The eyes of a folder: from an image's bytes to rows for its language model, as the model itself would make them.

The model's own forward pass is begun with the image, and ended where it calls its language model: what that would read
are the rows. Encoding happens in the preparer's thread, beside the engine's steps.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.bnb.preparation import Preparation, for_the_model
from backends.engine import JobError, LoadError
from backends.files.pictures import KEPT_PIXELS, Size
from backends.generation.images import KeptRows, digest_of, pixels_of, size_of
from backends.generation.media import Encoded, MediaShape
from backends.generation.row_layout import Embedding
from backends.machine.crash_reason import in_words
from backends.plan import BATCH_TOKENS
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.bnb.sight import Sight
    from backends.messages import MediaKind, Medium

_KNOWN: Final = frozenset(
    {"inputs_embeds", "attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "input_ids",
     "cache_position", "output_attentions", "output_hidden_states", "return_dict", "logits_to_keep"}
)  # fmt: skip
"""What a language model may be called with, so that its rows are all that an image changes."""


class _CalledError(Exception):
    """The language model was called with these."""

    def __init__(self, called: dict[str, Any]) -> None:
        self.called = called


class FolderTower:
    """See `backends.generation.media.MediaTower`."""

    def __init__(self, model: Any, preparation: Preparation, *, salt: str, most_kept_bytes: int, sight: Sight) -> None:
        self.kinds: Sequence[MediaKind] = ("image",)
        self._model = model
        self._preparation = preparation
        self._salt = salt
        self._kept = KeptRows(most_kept_bytes)
        self.leads = sight.leads
        self._alone = sight.sees_each_other
        self._encoding = threading.Lock()
        self._here = threading.local()
        weights = model.get_input_embeddings().weight
        self._device, self._dtype = weights.device, weights.dtype
        model.get_decoder().register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, _module: Any, _args: Any, called: dict[str, Any]) -> None:
        """Of every pass; the engine's own go on."""
        if getattr(self._here, "encodes", False):
            raise _CalledError(called)

    def close(self) -> None:
        """Nothing is held outside of Python."""

    def warm_up(self) -> int:
        """Encode the largest image there can be, so that its buffers exist; how many rows it has. Raises LoadError."""
        side = int(KEPT_PIXELS**0.5)
        try:
            made = self._encoded(np.full((side, side, 3), 127, dtype=np.uint8))
        except JobError as error:
            raise LoadError(f"an image {error.message}", out_of_memory=error.code == "out_of_memory") from None
        return sum(one.rows.shape[0] for one in made)

    def shapes(self, medium: Medium) -> Sequence[MediaShape | Sequence[int]]:
        """See `backends.generation.media.MediaTower`: by the image's header, without its pixels."""
        layout = self._preparation.layout(size_of(medium))
        digest, behind = digest_of(medium, self._salt), 0
        found: list[MediaShape | Sequence[int]] = []
        for tile, run in enumerate(layout.runs):
            if run.begin > behind:
                found.append(layout.tokens[behind : run.begin])
            own = hashlib.sha256(f"{digest} {tile}".encode()).hexdigest()
            found.append(MediaShape(run.end - run.begin, run.n_positions, own))
            behind = run.end
        return [*found, layout.tokens[behind:]] if behind < len(layout.tokens) else found

    def embed(self, medium: Medium) -> Encoded:
        """See `backends.generation.media.MediaTower`: the rows made before, or made now."""
        digest = digest_of(medium, self._salt)
        if (kept := self._kept.find(digest)) is not None:
            return Encoded(kept, None)
        with self._encoding:
            began = time.perf_counter()
            made = self._encoded(pixels_of(medium))
            took_s = time.perf_counter() - began
        self._kept.keep(digest, made)
        return Encoded(made, took_s)

    def _encoded(self, pixels: NDArray[np.uint8]) -> list[Embedding]:
        height, width, _ = pixels.shape
        layout = self._preparation.layout(Size(width, height))
        if self._alone and (longest := max(run.end - run.begin for run in layout.runs)) > BATCH_TOKENS:
            told = f"becomes {longest} rows that have to be computed at once, and {BATCH_TOKENS} can be"
            raise JobError("unsupported_media", told, param="prompt")
        rows = self._rows(self._preparation.inputs(pixels))
        return [
            Embedding(rows[run.begin : run.end], run.offsets, np.ones_like(run.offsets), self._alone)
            for run in layout.runs
        ]

    @torch.inference_mode()
    def _rows(self, inputs: dict[str, Any]) -> NDArray[np.float32]:
        """`(n_tokens, n_widths * n_embd) float32`: what the language model would read for an image's tokens, and what
        its first layers would be given beside it (DeepStack, arXiv 2406.04334). Raises JobError.
        """
        self._here.encodes = True
        try:
            self._model(**for_the_model(inputs, device=self._device, dtype=self._dtype), use_cache=False)
        except _CalledError as reached:
            return self._read(reached.called)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise JobError("internal_error", f"could not be encoded: {in_words(error)}", param="prompt") from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            told = f"found no memory for its encoder: {shortage.told(error)}"
            raise JobError("out_of_memory", told, param="prompt") from None
        finally:
            self._here.encodes = False
        raise JobError("internal_error", "could not be encoded: the language model was not called", param="prompt")

    def _read(self, called: dict[str, Any]) -> NDArray[np.float32]:
        further, places = called.pop("deepstack_visual_embeds", None), called.pop("visual_pos_masks", None)
        strange = sorted(name for name, value in called.items() if value is not None and name not in _KNOWN)
        if strange:
            told = f"could not be encoded: the language model takes {', '.join(strange)} beside its rows"
            raise JobError("internal_error", told, param="prompt")
        parts = [called["inputs_embeds"][0]]
        for deeper in further or ():
            part = torch.zeros_like(parts[0])
            part[places[0]] = deeper.to(part.dtype)
            parts.append(part)
        rows: NDArray[np.float32] = torch.cat(parts, dim=1).to("cpu", torch.float32).numpy()
        return rows
