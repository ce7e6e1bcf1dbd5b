"""What of a model folder is refused before any library opens it, each with the file's name and what to do.

A folder comes from strangers: pickles and Python files in it could run code, and its configuration may ask for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backends.engine import LoadError
from backends.files import model_files

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONFIGS: Final = ("config.json", "tokenizer_config.json")
_ATTENTIONS: Final = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
_CHOOSES_ATTENTION: Final = ("_attn_implementation", "_attn_implementation_internal", "attn_implementation")


def check(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """config.json, once nothing in the folder asks for what only the operator may allow. Raises LoadError."""
    try:
        model_files.check_folder(folder)
        documents = {name: _object(folder / name) for name in _CONFIGS if (folder / name).exists()}
    except model_files.FileError as error:
        raise LoadError(str(error)) from None
    config = documents.get("config.json")
    if config is None:
        raise LoadError("the folder has no config.json. hint: a model folder is what `save_pretrained` writes")
    for name, document in documents.items():
        _check_code(name, document, folder, trust_remote_code=trust_remote_code)
    _check_attention(config)
    _check_quantization(config)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise LoadError(
            f"the folder has no tokenizer: none of {', '.join(TOKENIZERS)} is there. "
            "hint: copy tokenizer.json and tokenizer_config.json of the model into it"
        )
    return config


def _check_code(name: str, document: dict[str, Any], folder: Path, *, trust_remote_code: bool) -> None:
    if "trust_remote_code" in document:
        raise LoadError(
            f"{name} sets trust_remote_code, which only the operator may. hint: delete the key from {name}; "
            "trust_remote_code = true belongs into the model's table of onecard's configuration"
        )
    asked = document.get("auto_map")
    if not asked or trust_remote_code:
        return
    files = sorted(file.name for file in folder.glob("*.py"))
    code = f" ({', '.join(files[:4])})" if files else ""
    raise LoadError(
        f"{name} asks for Python code of the folder to be run (auto_map){code}. hint: where transformers knows the "
        f"architecture itself, delete auto_map from {name}; else set trust_remote_code = true for this model if you "
        "trust the authors of that code"
    )


def _check_attention(config: dict[str, Any]) -> None:
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *nested):
        for key in _CHOOSES_ATTENTION:
            chosen = part.get(key)
            if isinstance(chosen, (dict, list)) or chosen not in _ATTENTIONS:
                raise LoadError(f"config.json names an attention of its own in {key}. hint: delete the key")


def _check_quantization(config: dict[str, Any]) -> None:
    stored = config.get("quantization_config")
    if stored is None:
        return
    method = stored.get("quant_method", "bitsandbytes") if isinstance(stored, dict) else "unknown"
    if method not in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        raise LoadError(
            f"config.json says that the weights are stored with {str(method)[:40]}, and this backend reads "
            "bitsandbytes. hint: take the unquantised folder, or a GGUF file"
        )


def _object(path: Path) -> dict[str, Any]:
    return model_files.read_object(path, model_files.limit_of(path.name) or model_files.CONFIG_BYTES)
