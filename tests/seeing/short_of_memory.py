"""A child that may take no more than so much memory while images come: what its engine says, as JSON. For
`test_shortage`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from backends.engine import JobError
from backends.messages import Failed, Finished
from tests.bnb.short_of_memory import MIB, held_bytes, may_take
from tests.models.seeing import picture
from tests.seeing.driver import look, open_seer

SCRATCH_MIB = 300
"""What an image is given to be encoded in, beyond what there is."""


def said(engine: Any, data: bytes) -> str:
    """What comes of an image: how its job ended, or the refusal."""
    job = look([[7, 8], data, [9]], n_tokens=4)
    try:
        prepared = engine.prepare(job)
    except JobError as error:
        return f"{error.code}: {error.message}"
    return ended(engine, job.id, engine.add(prepared))


def ended(engine: Any, name: str, told: list[Any]) -> str:
    """The engine goes on until a job has ended; how it did."""
    while True:
        for event in told:
            if event.id == name and isinstance(event, Finished | Failed):
                return type(event).__name__
        told = engine.step().events


def take_scratch(*_: Any) -> None:
    """Before each image."""
    torch.empty(SCRATCH_MIB * MIB, dtype=torch.uint8)


def main(model: Path, free_mib: int) -> dict[str, Any]:
    """A large image finds no memory beside a text that goes on, and is answered once there is some."""
    engine: Any = open_seer(model)
    large, small = picture(3, width=1600, height=1500), picture(1)
    found: dict[str, Any] = {"before": said(engine, small)}
    text = look([[7, 8, 9, 10]], n_tokens=40)
    engine.add(engine.prepare(text))
    engine.step()
    eyes = getattr(engine._model.tower, "_model", None)
    if isinstance(eyes, torch.nn.Module):
        eyes.get_submodule("model.vision_tower").register_forward_pre_hook(take_scratch)
    may_take(free_mib * MIB)
    found["short"] = said(engine, large)
    found["text"] = ended(engine, text.id, [])
    may_take(None)
    found["after"] = [said(engine, small), said(engine, large)]
    found["held"] = held_bytes()
    engine.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
