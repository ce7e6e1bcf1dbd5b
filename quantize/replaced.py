"""Types that an output cannot have: an explicit choice is refused, what llama.cpp replaces by itself is a remark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends.gguf.info import HeaderInfo, Tensor
from backends.gguf.tensor_types import TENSOR_TYPES
from quantize.errors import QuantizeError
from quantize.types import FLOATS

if TYPE_CHECKING:
    from quantize.quantizer import Recipe

_BLOCKS: Final = {name: block for name, block, _ in TENSOR_TYPES.values()}
_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"


@dataclass(frozen=True)
class Replaced:
    """One matrix whose rows are no multiple of what its type packs together."""

    tensor: str
    wanted: str
    made: str


def remarks(type_name: str, replaced: Sequence[Replaced], made: HeaderInfo) -> list[str]:
    """A sentence for each pair of types, with the count."""
    n_matrices = sum(1 for tensor in made.tensors if len(tensor.shape) > 1)
    rows = {tensor.name: tensor.shape[0] for tensor in made.tensors}
    found = []
    for (wanted, got), n in sorted(Counter((one.wanted, one.made) for one in replaced).items()):
        lengths = sorted({rows[one.tensor] for one in replaced if (one.wanted, one.made) == (wanted, got)})
        found.append(
            f"{type_name}: {n} of {n_matrices} matrices are {got} instead of {wanted}, because rows of "
            f"{', '.join(map(str, lengths[:4]))} are no multiple of {_BLOCKS.get(wanted, 0)}"
        )
    return found


def check_choices(recipe: Recipe, source: HeaderInfo) -> None:
    """Refuse an explicit type that a tensor cannot have or that llama.cpp would ignore. Raises QuantizeError."""
    has_head = any(tensor.name == _HEAD for tensor in source.tensors)
    chosen = [
        ("--output-type", recipe.output_type, _HEAD if has_head else _EMBEDDING),
        ("--embedding-type", recipe.embedding_type, _EMBEDDING),
    ]
    if (recipe.overrides or recipe.output_type or recipe.embedding_type or recipe.pure) and recipe.type_name in FLOATS:
        raise QuantizeError(
            f"{recipe.type_name} holds every matrix in one type, so a type for some of them, or --pure, cannot be had. "
            "hint: make it in a run of its own",
            usage=True,
        )
    if recipe.output_type and recipe.embedding_type and not has_head and recipe.output_type != recipe.embedding_type:
        raise QuantizeError(
            f"the model has one matrix for its embedding and its head, which cannot be {recipe.embedding_type} and "
            f"{recipe.output_type}. hint: name one of the two",
            usage=True,
        )
    for option, type_name, name in chosen:
        if type_name is not None:
            _check_rows(option, type_name, (tensor for tensor in source.tensors if tensor.name == name))
    for tensor in source.tensors:
        first = next((o for o in recipe.overrides if re.search(o[0], tensor.name)), None)
        if first is not None and len(tensor.shape) > 1:
            _check_rows(f"--tensor-type {first[0]}", first[1], [tensor])


def check_made(recipe: Recipe, source: HeaderInfo, made: HeaderInfo) -> None:
    """What was chosen explicitly came out so for one tensor at least. Raises QuantizeError."""
    types = {tensor.name: tensor.type_name for tensor in made.tensors}
    for pattern, type_name in recipe.overrides:
        matched = [t.name for t in source.tensors if re.search(pattern, t.name)]
        if matched and all(types[name] != type_name.upper() for name in matched):
            raise QuantizeError(
                f"--tensor-type {pattern}={type_name} cannot be had: llama.cpp keeps what it matches "
                f"({', '.join(matched[:3])}) in {types[matched[0]]}",
                usage=True,
            )


def _check_rows(option: str, type_name: str, tensors: Iterable[Tensor]) -> None:
    block = _BLOCKS[type_name.upper()]
    for tensor in tensors:
        if tensor.shape[0] % block:
            able = [name for name in ("Q8_0", "Q5_0", "Q4_0", "F16") if tensor.shape[0] % _BLOCKS[name] == 0]
            raise QuantizeError(
                f"{option} = {type_name.upper()} cannot be had for {tensor.name}: its rows of {tensor.shape[0]} are no "
                f"multiple of {block}. hint: {', '.join(able)} can",
                usage=True,
            )
