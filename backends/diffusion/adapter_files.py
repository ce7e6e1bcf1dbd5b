"""LoRA adapters of models that draw: the headers of their files, held against the base's own tensors. All distrusted.

Four ways of writing one: diffusers' (`unet.LAYER.lora_A.weight`), peft's folder of one network, kohya's
(`lora_unet_LAYER.lora_down.weight`) and ComfyUI's (`diffusion_model.LAYER.lora_A.weight`), see `layer_names`.
Formats: `diffusers.loaders.lora_base`, `diffusers.loaders.lora_conversion_utils`.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import TYPE_CHECKING, Any, Final

from backends.diffusion.layer_names import foreign_names, plain
from backends.files import foreign, lora_folder, model_files, tensors
from backends.files.adapters import DIFFUSERS_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS, Adapter, AdapterError, configured

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backends.files.lora_folder import LoraPair
    from backends.files.tensors import StoredTensor

_NOTED: Final = "lora_adapter_metadata"
"""Where diffusers notes peft's configuration in a file, each key behind its part's name."""
_ENDING: Final = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<peft>[AB])(?:\.default)?\.weight|lora(?:_linear_layer)?[._](?P<old>down|up)\.weight"
    r"|(?P<alpha>alpha))"
)
_PARTS: Final = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")
_OF_PEFT: Final = "base_model.model."
_SIDES: Final = {"down": "A", "up": "B"}
_ALPHA: Final = "alpha"
_OTHERS: Final = {
    "dora_scale": "uses DoRA, which scales the base's columns",
    "lora_magnitude_vector": "uses DoRA, which scales the base's columns",
    "hada_": "is a LoHa, whose pairs are multiplied with each other",
    "lokr_": "is a LoKr, a product of Kronecker's",
    "lora_mid": "has a third matrix between its pairs (Tucker)",
    ".bias": "has biases beside its matrices",
    ".diff": "replaces whole layers",
    "lora_controlnet": "controls an image by another one",
    "clip_l": "teaches new words (textual inversion)",
}
"""What names of tensors tell of files that are no plain LoRA."""
_TURNED: Final = ("final_layer_adaLN_modulation_1", "final_layer.adaLN_modulation.1")
_CONTEXT: Final = re.compile(r".+joint_blocks[._](\d{1,3})[._]context_block[._]adaLN_modulation[._]1")
_OF_BLOCK: Final = "diffusion_model.joint_blocks.{}.x_block.adaLN_modulation.1"
_PROCESSOR: Final = re.compile(r"\.processor\.(to_(?:q|k|v|out))_lora\.")
"""Of diffusers before 0.22."""
_FLOATS: Final = {"F32": "<f", "F16": "<e", "BF16": "<f", "F64": "<d"}
_WHOSE: Final = "hint: is it an adapter of this very base?"
_MERGE: Final = "hint: fuse it into its base with diffusers' fuse_lora, and serve the folder that is saved then"


def described(
    base: Iterable[StoredTensor], layers_per_block: int, options: Mapping[str, bool | int | float | str]
) -> tuple[Adapter, ...]:
    """What is told of every configured adapter; one that does not fit says why. Blocks on the disk."""
    shapes = shapes_of(base)
    return tuple(_described(name, path, shapes, layers_per_block) for name, path in configured(options).items())


def shapes_of(base: Iterable[StoredTensor]) -> dict[str, tuple[int, ...]]:
    """Of linear layers `(out, in)` and convolutions `(out, in, height, width)`, by their parts' and their names."""
    named = ((tensor.name.removesuffix(".weight"), tensor.shape) for tensor in base if tensor.name.endswith(".weight"))
    return {plain(name): shape for name, shape in named if len(shape) in (2, 4)}


def _described(name: str, path: Path, shapes: Mapping[str, tuple[int, ...]], layers_per_block: int) -> Adapter:
    try:
        pairs = checked(path, shapes, layers_per_block)
    except AdapterError as problem:
        return Adapter(name, path, problem=foreign.plain([str(problem)])[0])
    n_values = sum(pair.n_values for pair in pairs)
    n_bytes = sum(side.n_bytes for side in {side for pair in pairs for side in (pair.a, pair.b)})  # some share one
    return Adapter(name, path, max(pair.rank for pair in pairs), len(pairs), n_values, n_bytes)


def checked(path: Path, shapes: Mapping[str, tuple[int, ...]], layers_per_block: int) -> tuple[LoraPair, ...]:
    """The pairs of an adapter that fits its base, by the base's names. Raises AdapterError; blocks."""
    try:
        network = "unet" if any(name.startswith("unet.") for name in shapes) else "transformer"
        pairs = _pairs(file_of(path), shapes, foreign_names(shapes, layers_per_block), network)
    except model_files.FileError as error:
        raise AdapterError(str(error)) from None
    for pair in pairs:
        _check_shape(pair, shapes)
    return pairs


def file_of(path: Path) -> Path:
    """The one file with the weights. Raises AdapterError."""
    if str(path).startswith("hf:"):
        raise AdapterError(f"{path} is not in the local cache. hint: `hf download {str(path)[3:]}` fetches it")
    if not model_files.is_there(path):
        raise AdapterError(f"there is no file or folder {path}")
    if not path.is_dir():
        if path.suffix in tensors.PICKLES:
            raise AdapterError(_pickled(path.name))
        return path
    for name in (DIFFUSERS_WEIGHTS, PEFT_WEIGHTS):
        if model_files.is_there(path / name):
            return path / name
    found = sorted(one.name for one in path.iterdir())
    if pickle := next((name for name in found if name.endswith(tuple(tensors.PICKLES))), None):
        raise AdapterError(_pickled(pickle))
    others = [name for name in found if name.endswith(".safetensors")]
    hint = f"name the file: {path.name}/{others[0]}" if others else "was it downloaded completely?"
    raise AdapterError(f"{path.name} holds neither {DIFFUSERS_WEIGHTS} nor {PEFT_WEIGHTS}. hint: {hint}")


def _pickled(name: str) -> str:
    return (
        f"its weights are pickled ({name}), and a pickle can run code when it is read. hint: take the adapter as "
        "safetensors"
    )


def _pairs(
    file: Path, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[str, ...]], network: str
) -> tuple[LoraPair, ...]:
    """All of a file; `network` is the part that peft's folders are for. Raises AdapterError or FileError."""
    found: dict[tuple[str, ...], dict[str, StoredTensor]] = {}
    for tensor in tensors.of_file(file)[0]:
        layers, side = _place(tensor.name, theirs, network)
        if side != _ALPHA:
            lora_folder.check_matrix(tensor, n_axes=(2, 4))
        sides = found.setdefault(layers, {})
        if side in sides:
            raise AdapterError(_twice(layers[0], sides[side].name, tensor.name))
        sides[side] = tensor
    if not found:
        raise AdapterError(f"{file.name} holds no matrices. hint: was it saved after training?")
    _check_once(found)
    noted = _noted(file)
    pairs: list[LoraPair] = []
    for layers, sides in sorted(found.items()):
        pairs += _in_rows(_pair(file, layers[0], sides, noted), layers, shapes)
    return tuple(pairs)


def _check_once(found: Mapping[tuple[str, ...], Mapping[str, StoredTensor]]) -> None:
    """Raises AdapterError where a layer is changed alone, and among others that are one matrix to the trainer."""
    names: dict[str, str] = {}
    for layers, sides in found.items():
        name = next(iter(sides.values())).name
        if layer := next((one for one in layers if one in names), None):
            raise AdapterError(_twice(layer, names[layer], name))
        names.update(dict.fromkeys(layers, name))


def _twice(layer: str, one: str, other: str) -> str:
    return (
        f"it changes {layer[:120]} twice, by {one[:120]} and by {other[:120]}. hint: was it merged by a script? "
        "take its trainer's own file"
    )


def _in_rows(pair: LoraPair, layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[LoraPair]:
    """A pair for each of the layers that are one matrix to the trainer. Raises AdapterError."""
    if len(layers) == 1:
        yield pair
        return
    up, n_rows = pair.b, [shapes[layer][0] for layer in layers]
    if up.shape[0] != sum(n_rows):
        raise AdapterError(
            f"its matrix for {', '.join(layers)[:120]} has {up.shape[0]} rows, and this model has {sum(n_rows)} there. "
            f"{_WHOSE}"
        )
    row_bytes, first = up.n_bytes // up.shape[0], 0
    for layer, n in zip(layers, n_rows, strict=True):
        start = up.start + first * row_bytes
        rows = dataclasses.replace(up, shape=(n, *up.shape[1:]), n_bytes=n * row_bytes, start=start)
        yield dataclasses.replace(pair, layer=layer, b=rows)
        first += n


def _place(name: str, theirs: Mapping[str, tuple[str, ...]], network: str) -> tuple[tuple[str, ...], str]:
    """The layers a tensor is for, by the base's names, and what it is of its pair. Raises AdapterError."""
    match = _ENDING.fullmatch(_PROCESSOR.sub(r".\1.lora.", name).replace(".to_out.lora.", ".to_out.0.lora."))
    if match is None:
        does = next((does for mark, does in _OTHERS.items() if mark in name), None)
        told = f"it {does}" if does else f"it holds {name[:120]!r}, which is no matrix of a LoRA pair"
        raise AdapterError(f"{told}. {_MERGE}")
    layer, side = match["layer"], match["peft"] or _SIDES.get(match["old"] or "", _ALPHA)
    if layer.startswith(_OF_PEFT):
        return (f"{network}.{layer.removeprefix(_OF_PEFT)}",), side
    if layer.startswith(_PARTS):
        return (plain(layer),), side
    if layer.endswith(_TURNED) or _is_last_context(layer, theirs):
        raise AdapterError(f"it changes {layer[:120]}, whose halves diffusers has the other way round. {_MERGE}")
    if layer not in theirs:
        raise AdapterError(f"it changes {layer[:120]}, which is no layer of this model. {_WHOSE}")
    return theirs[layer], side


def _is_last_context(layer: str, theirs: Mapping[str, tuple[str, ...]]) -> bool:
    """Of Stable Diffusion 3 the last block's alone is turned; its number is the model's."""
    match = _CONTEXT.fullmatch(layer)
    return match is not None and layer not in theirs and _OF_BLOCK.format(match[1]) in theirs


def _noted(file: Path) -> dict[str, dict[str, Any]]:
    """peft's configuration of each part, where the file or the folder has one. Raises AdapterError or FileError."""
    if file.name == PEFT_WEIGHTS and model_files.is_there(file.parent / PEFT_CONFIG):
        config = model_files.read_object(file.parent / PEFT_CONFIG)
        lora_folder.check_config(config)
        return {"": config}
    written = tensors.remarks_of(file).get(_NOTED)
    told = model_files.parsed(written.encode(), _NOTED) if written else {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in told.items() if isinstance(told, dict) else ():
        part, _, name = str(key).partition(".")
        parts.setdefault(part, {})[name] = value
    for config in parts.values():
        lora_folder.check_config({"peft_type": "LORA", **config}, _NOTED)
    return parts


def _pair(file: Path, layer: str, sides: Mapping[str, StoredTensor], noted: Mapping[str, dict[str, Any]]) -> LoraPair:
    """Where nothing is noted, a file has a number for each layer, or the scale is 1."""
    part, _, inner = layer.partition(".")
    matrices = {side: tensor for side, tensor in sides.items() if side != _ALPHA}
    rank = matrices["A"].shape[0] if "A" in matrices else 0
    config = noted.get(part) or noted.get("")
    if config is None:
        config = {"r": rank, "lora_alpha": _number(file, sides[_ALPHA]) if _ALPHA in sides else rank}
    made = lora_folder.pair(inner, matrices, config, _NOTED if part in noted else file.name)
    return dataclasses.replace(made, layer=layer)


def _number(file: Path, stored: StoredTensor) -> float:
    """One that a file holds as a tensor. Raises AdapterError or FileError."""
    form = _FLOATS.get(stored.dtype)
    if form is None or stored.n_elements != 1:
        raise AdapterError(f"{stored.name[:120]} is {stored.dtype} with {stored.n_elements} numbers, and not one float")
    with model_files.opened(file) as opened:
        raw = opened.at(stored.start, stored.n_bytes)
    if stored.dtype == "BF16":
        raw = b"\0\0" + raw
    return float(struct.unpack(form, raw)[0])


def _check_shape(pair: LoraPair, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises AdapterError."""
    shape, down, up = shapes.get(pair.layer), pair.a.shape, pair.b.shape
    if shape is None:
        raise AdapterError(f"it changes {pair.layer[:120]}, which is no layer of this model. {_WHOSE}")
    if down[1:] != shape[1:] or up[0] != shape[0] or up[2:] not in ((), (1, 1)) or len(down) != len(up):
        raise AdapterError(
            f"its matrices for {pair.layer[:120]} are {_told(down)} and {_told(up)}, and this model has "
            f"{_told(shape)} there. {_WHOSE}"
        )


def _told(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
