"""The engine in the test's own process, over a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backends.diffusion.kind import DrawPlan
from backends.messages import LoadModel


def loaded(
    folder: Path, plan: DrawPlan | None = None, *, options: dict[str, Any] | None = None, **adapters: Path
) -> Any:
    """Of three images at once where no plan is given; `adapters` by their names, `options` of the model's table, which
    without any has images of 96 x 96 pixels."""
    from backends.diffusion.loading import load

    taught = {"adapters": json.dumps({name: str(path) for name, path in adapters.items()})} if adapters else {}
    given = {**({"image_size": "96x96"} if options is None else options), **taught}
    plan = plan or DrawPlan(parallel=3)
    spec = LoadModel(name="a", backend="diffusion", path=str(folder), plan=plan, threads=1, options=given)
    return load(spec, lambda _share: None)
