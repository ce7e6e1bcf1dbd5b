"""Which architectures the installed transformers has a class for, read from its source: importing it takes seconds.

The server asks before any load, and imports no library.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.files import model_files

if TYPE_CHECKING:
    from backends.bnb.layout import Gives

_TABLES: Final[Mapping[Gives, tuple[str, str]]] = {
    "text": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "generates text with"),
    "vectors": ("MODEL_MAPPING_NAMES", "computes"),
    "scores": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "scores with"),
}
"""The table of transformers for what a model gives, and what it does with such a model."""
_SEES: Final = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
_SOURCE_BYTES: Final = 4 * 2**20


def does(gives: Gives) -> str:
    """What transformers does with such a model, for a sentence."""
    return _TABLES[gives][1]


def has_class(model_type: str, gives: Gives) -> bool | None:
    """Whether transformers has a class for it; None where its tables are not found."""
    names = _tables().get(_TABLES[gives][0])
    return None if names is None else model_type in names


def sees(model_type: str) -> bool:
    """Whether transformers has a class of such models that answers texts with images in them."""
    return model_type in _tables().get(_SEES, {})


def other_kind(model_type: str) -> str | None:
    """The name of the class that transformers has for it, whatever that does."""
    return _tables().get("MODEL_MAPPING_NAMES", {}).get(model_type)


@functools.cache
def _tables() -> Mapping[str, Mapping[str, str]]:
    """The tables of `modeling_auto.py` by their names; empty where transformers is missing or arranged otherwise."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(model_files.read_bytes(path, _SOURCE_BYTES))
    except (model_files.FileError, SyntaxError, ValueError):
        return {}
    wanted = {name for name, _ in _TABLES.values()} | {_SEES}
    found = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in wanted and isinstance(node, ast.Assign):
            found[target.id] = _pairs(node.value)
    return {name: pairs for name, pairs in found.items() if pairs}


def _pairs(value: ast.expr) -> dict[str, str]:
    """The pairs of `OrderedDict([("a", "B"), ...])`; empty for anything else."""
    rows = value.args[0] if isinstance(value, ast.Call) and value.args else value
    try:
        return {str(key): str(name) for key, name in ast.literal_eval(rows)}
    except (ValueError, TypeError):
        return {}
