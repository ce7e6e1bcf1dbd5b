"""A LoRA adapter of peft written as the GGUF adapter of a GGUF model, whose header tells names and heads.

One scale is said for the whole file, so what ranks, patterns and rank-stabilised scales make of each pair goes into its
second matrix. Rows of it are permuted as those of the base are. `base_model_name_or_path` is never followed.
Format: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gguf
import numpy as np

from backends.backend import HeaderError
from backends.files import lora_folder, lora_values
from backends.files.adapters import PEFT_CONFIG, AdapterError
from backends.gguf import adapters
from backends.gguf.header import read
from quantize.errors import QuantizeError
from quantize.files import check_space, check_target, replacing
from quantize.hf.config import Config
from quantize.hf.families import FAMILIES
from quantize.hf.families.gpt2 import GPT2
from quantize.request import check_plain
from quantize.types import GGUF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from backends.files.lora_folder import LoraFolder, LoraPair
    from backends.files.tensors import StoredTensor
    from backends.gguf.info import HeaderInfo
    from quantize.hf.families.base import Family
    from quantize.order import Order, Teller

_HEADER_BYTES: Final = 2**20


def is_source(folder: Path) -> bool:
    """Whether a folder is an adapter of peft."""
    return (folder / PEFT_CONFIG).is_file() and not (folder / "config.json").exists()


def convert(order: Order, tell: Teller) -> Path:
    """Write the one file, whole or not at all. Raises QuantizeError."""
    target = _checked_target(order)
    assert order.base is not None
    try:
        base, folder = read(order.base), lora_folder.read(order.source)
    except HeaderError as problem:
        raise QuantizeError(f"{order.base.name}: {problem}", usage=True) from None
    except AdapterError as problem:
        raise QuantizeError(f"{order.source.name}: {problem}", usage=True) from None
    if (copy := next(iter(folder.copies), None)) is not None:
        raise QuantizeError(
            f"{order.source.name} carries its base's whole layer {copy[:120]}, which is not held against a GGUF file. "
            f"{lora_folder.WITHOUT_COPIES}; or merge it: --to Q4_K_M --base FOLDER",
            usage=True,
        )
    family = next((one for one in FAMILIES if one.gguf_name == base.architecture), None)
    if family is None:
        raise QuantizeError(
            f"adapters of {base.architecture[:40]} models are not converted here. hint: llama.cpp's "
            "convert_lora_to_gguf.py may"
        )
    check_target(target, order.source, force=order.force)
    order.folder.mkdir(parents=True, exist_ok=True)
    check_space(order.folder, _HEADER_BYTES + sum(4 * pair.n_values for pair in folder.pairs))
    tell.line(f"writing {target}")
    with replacing(target) as temporary:
        _write(temporary, folder, base, family)
        try:
            adapters.checked(temporary, base)
        except AdapterError as problem:
            raise QuantizeError(f"{order.source.name} does not fit {order.base.name}: {problem}", usage=True) from None
    return target


def _checked_target(order: Order) -> Path:
    if not is_source(order.source):
        raise QuantizeError(
            f"{GGUF} is for adapters of peft, and {order.source.name} is none. hint: --to F16", usage=True
        )
    if order.types != (GGUF,):
        raise QuantizeError(
            f"{GGUF} is an adapter of a GGUF file, and the other types are of the merged model. hint: two runs, each "
            "with its --base",
            usage=True,
        )
    check_plain(order)
    if order.base is None:
        raise QuantizeError(
            "which model the adapter is for is not taken from its own files. hint: --base MODEL.gguf names it",
            usage=True,
        )
    if not order.base.is_file():
        raise QuantizeError(
            f"--base {order.base}: no GGUF file is there. hint: --to hf, F16 or Q4_K_M merges into a model folder",
            usage=True,
        )
    return order.target(GGUF)


def _write(path: Path, folder: LoraFolder, base: HeaderInfo, family: Family) -> None:
    alpha = _common_alpha(folder)
    writer = gguf.GGUFWriter(path, base.architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, matrix in _tensors(folder, base, family, alpha=alpha):
            writer.add_tensor(name, matrix)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _common_alpha(folder: LoraFolder) -> float:
    """The first pair's, or 1 where 32 bits do not hold it: llama.cpp takes 0 for a file that says none."""
    alpha = folder.pairs[0].scale * folder.pairs[0].rank
    held = np.finfo(np.float32)
    return alpha if float(held.tiny) <= abs(alpha) <= float(held.max) else 1.0


def _tensors(
    folder: LoraFolder, base: HeaderInfo, family: Family, *, alpha: float
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and matrices as llama.cpp takes them. Raises QuantizeError."""
    table = gguf.get_tensor_name_map(_number_of(base.architecture), base.n_layers)
    heads = {"num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv"}
    config = Config({**{key: base.number(name) or None for key, name in heads.items()}})
    for pair in folder.pairs:
        name = table.get_name(f"{pair.layer}.weight", try_suffixes=(".weight",))
        if name is None:
            raise QuantizeError(f"the adapter changes {pair.layer[:120]}, which llama.cpp has no name for", usage=True)
        a, b = values(folder, pair.a), values(folder, pair.b)
        factor = pair.scale * pair.rank / alpha
        yield f"{name}.lora_a", a
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.ascontiguousarray(_placed(pair, b, family, config) * np.float32(factor))
        if not np.isfinite(scaled).all():
            raise QuantizeError(
                f"{pair.layer[:120]} comes to numbers that F32 cannot hold. hint: its scale is {factor:.3g}"
            )
        yield f"{name}.lora_b", scaled


def _placed(pair: LoraPair, b: NDArray[np.float32], family: Family, config: Config) -> NDArray[Any]:
    """Rows in the order that the base's have; GPT-2's matrices are stored the other way round, its pairs are not."""
    mapped = family.map_tensor(f"{pair.layer}.weight", config)
    return b if mapped is None or mapped.rearrange is None or family is GPT2 else mapped.rearrange(b)


def _number_of(architecture: str) -> Any:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def values(folder: LoraFolder, stored: StoredTensor) -> NDArray[np.float32]:
    """The numbers of one matrix, `(rows, columns)`. Raises QuantizeError; a number that is none is told."""
    try:
        return lora_values.read_floats(folder.path, stored)
    except AdapterError as problem:
        raise QuantizeError(f"{folder.path.name}: {problem}") from None
