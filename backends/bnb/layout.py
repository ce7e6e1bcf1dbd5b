"""What a folder's files say that a model is for: text, vectors (and how they are pooled), or scores of pairs.

Reads sentence-transformers' layout: modules.json with a Transformer, a Pooling, and perhaps Dense and Normalize. An
encoder without it is pooled by the mean, as sentence-transformers takes it. No library is needed and no code is run.
Layout: https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Mapping

Pooling = Literal["mean", "cls", "max", "last"]
Gives = Literal["text", "vectors", "scores"]

_POOLINGS: Final[Mapping[str, Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NAMED: Final[Mapping[str, Pooling]] = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
_BARE: Final = ("ForMaskedLM", "ForPreTraining")
"""Heads of encoders that are not for text."""
_ENCODERS: Final = frozenset(
    {
        "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra", "albert", "deberta",
        "deberta-v2", "modernbert", "eurobert", "nomic_bert", "ernie", "rembert", "convbert", "squeezebert",
    }
)  # fmt: skip
_SHIFTED: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Their positions begin behind the padding token's, so that two rows of the table are never used."""
_KNOWN_MODULES: Final = frozenset({"Transformer", "Pooling", "Dense", "Normalize"})


class LayoutError(Exception):
    """The folder asks for a way to vectors that this backend does not know; the text says which."""


@dataclass(frozen=True)
class Layout:
    """How a model's hidden states become its answer."""

    gives: Gives
    pooling: Pooling = "mean"
    dense: tuple[str, ...] = ()
    """Folders of Dense modules behind the pooling, in order."""
    prompt: str = ""
    """What sentence-transformers puts in front of every text when it is asked for nothing else."""


GENERATES: Final = Layout("text")


def read_layout(folder: Path, config: Mapping[str, Any]) -> Layout:
    """Raises LayoutError; blocks on the disk."""
    modules = _json(folder / "modules.json", default=[])
    if modules:
        return _of_modules(folder, modules)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture.endswith("ForSequenceClassification"):
        return Layout("scores")
    is_encoder = config.get("model_type") in _ENCODERS and config.get("is_decoder") is not True
    bare = architecture.endswith("Model") or any(head in architecture for head in _BARE)
    return Layout("vectors") if is_encoder and bare else GENERATES


def input_limit(context: int, config: Mapping[str, Any]) -> int:
    """Tokens one input may have: absolute positions end where the training did."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return context
    return min(context, positions - 2 if config.get("model_type") in _SHIFTED else positions)


def _of_modules(folder: Path, modules: Any) -> Layout:
    try:
        named = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise LayoutError("modules.json is not a list of modules with a type and a path") from None
    kinds = [kind for kind, _ in named]
    if strange := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
        raise LayoutError(
            f"modules.json has a module of kind {strange[0][:60]!r}; {', '.join(_KNOWN_MODULES)} are known"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or named[0][1]:
        raise LayoutError("modules.json does not begin with a Transformer in the folder itself and a Pooling")
    if outside := [path for _, path in named if path and Path(path).name != path]:
        raise LayoutError(f"modules.json names the folder {outside[0][:60]!r}, which is not one inside")
    told = _json(folder / "config_sentence_transformers.json", default={})
    prompts, default = told.get("prompts"), told.get("default_prompt_name")
    prompt = prompts.get(default) if isinstance(prompts, dict) and isinstance(default, str) else None
    settings = _json(folder / named[1][1] / "config.json", default={})
    if prompt and settings.get("include_prompt") is False:
        raise LayoutError("1_Pooling leaves out the prompt, which this backend cannot")
    return Layout(
        "vectors",
        _pooling(settings, named[1][1]),
        dense=tuple(path for kind, path in named if kind == "Dense"),
        prompt=prompt if isinstance(prompt, str) else "",
    )


def _pooling(settings: Mapping[str, Any], path: str) -> Pooling:
    chosen = [pooling for key, pooling in _POOLINGS.items() if settings.get(key) is True]
    named = _NAMED.get(str(settings.get("pooling_mode")))
    others = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if named is not None and not others:
        return named
    if len(others) != 1 or len(chosen) != 1:
        raise LayoutError(f"{path}/config.json asks for a pooling that is none of {', '.join(_NAMED)}")
    return chosen[0]


def _json(path: Path, *, default: Any) -> Any:
    try:
        document = model_files.read_json(path)
    except model_files.MissingError:
        return default
    except model_files.FileError as error:
        raise LayoutError(str(error)) from None
    if not isinstance(document, type(default)):
        raise LayoutError(f"{path.name} is not what it is for sentence-transformers")
    return document
