"""Gives a loaded GGUF model its eyes and ears: the projector that was found for it, opened, tried and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.backend import HeaderError
from backends.engine import LoadError
from backends.gguf.projector import projector_for
from backends.gguf.tower import Tower
from backends.machine.kernel import give_back_freed

if TYPE_CHECKING:
    from backends.gguf.model import Model
    from backends.messages import LoadModel


@dataclass(frozen=True)
class Eyes:
    """What came of it."""

    n_bytes: int = 0
    """Of the projector's weights, and of what it computes in."""
    identity: str = ""
    """What the bytes of a state with images in it depend on beside the model."""
    host_bytes: int = 0
    """Of host memory, for media on their way and rows that are kept: used by requests, not yet by the load."""


def open_for(spec: LoadModel, model: Model, *, on_card: bool, n_threads: int) -> Eyes:
    """Set the model's tower where it has one: the largest image and sound are encoded once. Raises LoadError."""
    try:
        projector = projector_for(Path(spec.path), model.width, spec.options)
    except HeaderError as error:
        raise LoadError(str(error)) from None
    if projector is None or not projector.kinds:
        return Eyes()
    log = model.log
    of_model = list(log.lines)
    model.tower = Tower(projector, model, on_card=on_card, n_threads=n_threads)
    model.tower.warm_up()
    give_back_freed()
    log.lines[: len(of_model)] = []
    encoder_bytes = sum(log.buffers("compute").values())
    log.lines[:] = of_model
    status = projector.path.stat()
    most = projector.image_max_tokens
    identity = f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {most}"
    host_bytes = projector.kept_bytes(model.width) + projector.way_bytes
    return Eyes(projector.n_bytes + encoder_bytes, identity, host_bytes)
