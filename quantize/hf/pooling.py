"""How a model's token vectors become one: from the sentence-transformers files beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf

from backends.files import model_files
from quantize.errors import QuantizeError
from quantize.hf.source import read_json
from quantize.words import shown

_KINDS: Final = {
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
    "pooling_mode_lasttoken": gguf.PoolingType.LAST,
}
_KNOWN_MODULES: Final = ("Transformer", "Pooling", "Normalize")
_NAMED: Final = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "lasttoken": gguf.PoolingType.LAST}


def write_pooling(writer: Any, path: Path) -> None:
    """The pooling of modules.json; nothing where there is none. Raises QuantizeError for kinds llama.cpp has not."""
    folder = _pooling_folder(path)
    if folder is None:
        return
    _refuse_more(path)
    settings = read_json(path / folder / "config.json") or {}
    chosen = [kind for key, kind in _KINDS.items() if settings.get(key)]
    named = _NAMED.get(str(settings.get("pooling_mode")))
    if len(chosen) != 1 and named is None:
        raise QuantizeError(
            f"{folder}/config.json asks for a pooling that llama.cpp has not; it has mean, cls and last"
        )
    writer.add_pooling_type(chosen[0] if len(chosen) == 1 else named)


def _refuse_more(path: Path) -> None:
    """Modules behind the pooling that change vectors; llama.cpp normalises itself. Raises QuantizeError."""
    modules = model_files.read_json(path / "modules.json")
    more = [kind for m in modules if (kind := m["type"].rsplit(".", 1)[-1]) not in _KNOWN_MODULES]
    if more:
        raise QuantizeError(
            f"modules.json has a module of kind {shown(more[0])} behind the pooling, which a GGUF file of this "
            "architecture cannot hold: the vectors would be others. hint: serve the folder itself"
        )


def _pooling_folder(path: Path) -> str | None:
    file = path / "modules.json"
    try:
        modules = model_files.read_json(file)
        found = next((module["path"] for module in modules if module["type"].endswith("Pooling")), None)
    except model_files.MissingError:
        return None
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    except (KeyError, TypeError, AttributeError):
        raise QuantizeError("modules.json cannot be read") from None
    if found is not None and (not isinstance(found, str) or Path(found).name != found):
        raise QuantizeError(f"modules.json names the folder {shown(str(found))}")
    return found
