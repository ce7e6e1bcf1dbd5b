"""A model that draws in one safetensors file, as ComfyUI keeps it: its tensors by diffusers' names. Distrusted.

The file says nothing of its networks' sizes, tokenizers and scheduler. These come from a folder of the same model as
diffusers has it, which needs weights only of what the file lacks: a Flux without its text encoders, for example.
Names: diffusers' `loaders.single_file_utils`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.diffusion.families import FAMILIES
from backends.diffusion.file_fit import KEY, fitting
from backends.diffusion.file_tensors import FileTensor, checked
from backends.diffusion.layer_names import plain
from backends.diffusion.original_names import FLUX, SD3, diffusers_names
from backends.diffusion.part_names import PROJECTION, Named, of_open_clip, of_transformers, vae_name
from backends.diffusion.unet_names import unet_name
from backends.files import model_files, tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backends.backend import Setting
    from backends.files.tensors import StoredTensor

ENDING: Final = ".safetensors"
_DENOISER: Final = "model.diffusion_model."
_MARKS: Final[Mapping[str, str]] = {
    "joint_blocks.0.x_block.attn.qkv.weight": "StableDiffusion3Pipeline",
    "double_blocks.0.img_attn.qkv.weight": "FluxPipeline",
    "label_emb.0.0.weight": "StableDiffusionXLPipeline",
    "input_blocks.0.0.weight": "StableDiffusionPipeline",
}
"""Tensors of the network that denoises, behind its prefix; the first that is there tells whose file it is."""
_BARE: Final = ("joint_blocks.", "double_blocks.")
"""Transformers come without the prefix, too."""
_CLIP: Final[Mapping[str, str]] = {
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
"""How the names of an encoder's tensors begin, and its part, where they go on as transformers calls them."""
_IN_OPEN_CLIP: Final[Mapping[str, str]] = {
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
"""The same, where they go on as OpenCLIP does."""
_POSITIONS: Final = "text_encoder.text_model.embeddings.position_embedding.weight"
_FIRST_PROJECTION: Final = "text_encoder.text_projection.weight"
_V: Final = "v_pred"
_ZERO_SNR: Final = "ztsnr"
_OTHER_NOISE: Final = frozenset({"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"})
_PREDICTIONS: Final[Mapping[str, str]] = {"v": "v_prediction", "epsilon": "epsilon"}
_FIRST: Final = frozenset({"unet.conv_in.weight", "transformer.x_embedder.weight", "transformer.pos_embed.proj.weight"})
"""What takes the latents: its second side are their channels."""
_SQUARE: Final = re.compile(r"vae\.(?:encoder|decoder)\.mid_block\.attentions\.0\.to_\w+(?:\.0)?\.weight")
"""Stored as convolutions of 1 x 1."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the files of a model are."""

    folder: Path
    """With the configurations, and the weights of what is not in the file."""
    file: Path | None = None
    """With weights, where the model is one file."""


def places(path: Path, options: Mapping[str, Setting]) -> Places:
    """By the model's path and table. Raises HeaderError for a file without a folder of configurations."""
    asked = str(options.get(KEY, ""))
    if not path.is_file():
        if asked:
            raise HeaderError(f"{KEY} is for a model in one file, and this is a folder. hint: leave it out")
        return Places(path)
    try:
        folder = path.parent / Path(asked).expanduser() if asked else path.with_suffix("")
        is_there = folder.is_dir()
    except (RuntimeError, OSError) as error:  # no such user's home, a name that is too long
        raise HeaderError(f"{KEY} = {asked[:200]!r} cannot be looked at: {error}"[:400]) from None
    if not is_there:
        told = "it is a model in one file, which says nothing of its networks' sizes, its tokenizers and its scheduler"
        if asked:
            told = f"{KEY}: there is no folder {folder}"
        raise HeaderError(
            f"{told}. hint: {KEY} = a folder of the same model as diffusers has it (model_index.json); weights in it "
            "are used only for what the file lacks"
        )
    return Places(folder, path)


def is_single(path: Path) -> bool:
    """Whether a file holds the network that denoises of a model that we draw with."""
    if path.suffix != ENDING:
        return False
    try:
        return _pipeline({tensor.name for tensor in tensors.of_file(path)[0]}) is not None
    except model_files.FileError:
        return False  # it is told what it is where no backend takes it


def _pipeline(names: set[str]) -> str | None:
    for mark, pipeline in _MARKS.items():
        if _DENOISER + mark in names or (mark in names and mark.startswith(_BARE)):
            return pipeline
    return None


def stored(file: Path, configs: Mapping[str, Mapping[str, Any]], pipeline: str) -> list[FileTensor]:
    """What of a file is loaded, its part before its name, as diffusers calls it.

    `configs` are those of the folder's networks, by their parts. Raises HeaderError or FileError.
    """
    held = {tensor.name: tensor for tensor in tensors.of_file(file)[0]}
    if (found := _pipeline(set(held))) != pipeline:
        raise HeaderError(
            f"the file holds a {found}, and its folder of configurations is of a {pipeline}. hint: {KEY} = the folder "
            "of the file's own model"
        )
    kinds: dict[str, list[str]] = {}
    for layer, _, kind in (name.rpartition(".") for name in held):
        kinds.setdefault(layer, []).append(kind)
    made: list[FileTensor] = []
    for prefix, part, names_of in _converters(configs, pipeline):
        for tensor in held.values():
            if not tensor.name.startswith(prefix) or not (names := names_of(tensor.name.removeprefix(prefix))):
                continue
            scale = checked(tensor, held, kinds[tensor.name.rpartition(".")[0]])
            made += _in_rows(tensor, scale, [f"{part}.{name}" for name in names], configs[part])
    _check_channels(made, configs)
    whole = _with_identity([_changed(one, configs) for one in made], pipeline)
    return fitting(whole, configs, FAMILIES[pipeline].encoders)


def trained(file: Path) -> dict[str, Any]:
    """What a file says of how its network was trained, as a scheduler's configuration has it; without a word nothing.

    Tensors of no use but their names, as ComfyUI writes and knows them (`comfy.supported_models.SDXL.model_type`), and
    what the ModelSpec notes. Raises HeaderError for schedules that no scheduler here has, or FileError.
    """
    names = {tensor.name for tensor in tensors.of_file(file)[0]}
    if odd := sorted(names & _OTHER_NOISE):
        raise HeaderError(
            f"the file holds {odd[0]}: it was trained with noise of another kind (EDM), which onecard does not draw "
            "with. hint: take the plain model"
        )
    predicts = _PREDICTIONS.get(tensors.remarks_of(file).get("modelspec.predict_key", ""))
    found: dict[str, Any] = {"prediction_type": "v_prediction" if _V in names else predicts}
    if _ZERO_SNR in names:
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {key: value for key, value in found.items() if value is not None}


def _check_channels(made: Sequence[FileTensor], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises HeaderError where the network that denoises takes another number of them than its folder's."""
    for one in made:
        config = configs[one.name.partition(".")[0]]
        if one.name in _FIRST and len(one.shape) > 1 and one.shape[1] != config["in_channels"]:
            raise HeaderError(
                f"{one.source[:120]} takes {one.shape[1]} channels and its folder's network {config['in_channels']}: "
                "one is made for inpainting or for control by an image alone. hint: take the plain model"
            )


def _changed(one: FileTensor, configs: Mapping[str, Mapping[str, Any]]) -> FileTensor:
    """With what becomes of its numbers on their way to diffusers."""
    layer = one.name.rpartition(".")[0]
    if layer in ("transformer.norm_out.linear", _last_context(configs)):
        return dataclasses.replace(one, change="halves")
    if one.source.endswith(f".{PROJECTION}") and len(one.shape) == 2:
        return dataclasses.replace(one, change="transposed", shape=one.shape[::-1])
    if _SQUARE.fullmatch(one.name) is not None and one.shape[2:] == (1, 1):
        return dataclasses.replace(one, shape=one.shape[:2])
    return one


def _last_context(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Of a Stable Diffusion 3 the layer whose rows are a shift and a scale alone; of others no layer's name."""
    config = configs.get("transformer", {})
    number = int(config["num_layers"]) - 1 if "sample_size" in config else -1
    return f"transformer.transformer_blocks.{number}.norm1_context.linear"


def _with_identity(made: Sequence[FileTensor], pipeline: str) -> list[FileTensor]:
    """Stable Diffusion 3's first CLIP does not project: diffusers makes it the identity, whatever its file says."""
    positions = next((one for one in made if plain(one.name) == plain(_POSITIONS) and len(one.shape) == 2), None)
    if pipeline != "StableDiffusion3Pipeline" or positions is None:
        return list(made)
    sides = (positions.shape[1],) * 2
    identity = dataclasses.replace(positions, name=_FIRST_PROJECTION, shape=sides, n_bytes=0, change="identity")
    return [*(one for one in made if one.name != _FIRST_PROJECTION), identity]


Converter = tuple[str, str, Callable[[str], Named]]
"""How the names of a part's tensors begin, the part's folder, and its names."""


def _converters(configs: Mapping[str, Mapping[str, Any]], pipeline: str) -> Sequence[Converter]:
    n_up, encoders = len(configs["vae"]["block_out_channels"]), FAMILIES[pipeline].encoders
    found: list[Converter] = [(one, "vae", lambda name: vae_name(name, n_up)) for one in ("first_stage_model.", "vae.")]
    if "unet" in configs:
        layers = configs["unet"]["layers_per_block"]
        per_block = max(layers) if isinstance(layers, list) else layers
        found.append((_DENOISER, "unet", lambda name: unet_name(name, per_block)))
    else:
        table = FLUX if pipeline == "FluxPipeline" else SD3
        found += [(prefix, "transformer", lambda name: _joint_names(name, table)) for prefix in (_DENOISER, "")]
    t5 = next((part for part, kind in encoders.items() if kind == "t5"), "")
    for prefix, part in {**_CLIP, "text_encoders.t5xxl.transformer.": t5}.items():
        if part in configs and (part == t5) == ("t5xxl" in prefix):
            found.append((prefix, part, of_transformers(projects=encoders[part] == "clip_projected")))
    for prefix, part in _IN_OPEN_CLIP.items():
        if part in configs and part != t5:
            n_layers = int(configs[part]["num_hidden_layers"])
            found.append((prefix, part, of_open_clip(n_layers, projects=encoders[part] == "clip_projected")))
    return found


def _joint_names(name: str, table: Mapping[str, Named]) -> Named:
    if name == "pos_embed":
        return ("pos_embed.pos_embed",)
    layer, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias", "scale"):
        return ()  # files in 8 bits have numbers beside each matrix
    return tuple(f"{one}.{'weight' if kind == 'scale' else kind}" for one in diffusers_names(layer, table))


def _in_rows(
    tensor: StoredTensor, scale: StoredTensor | None, names: Sequence[str], config: Mapping[str, Any]
) -> Iterator[FileTensor]:
    """The tensors of a network that one of the file is. Raises HeaderError."""
    n_rows, whole = tensor.shape[0] if tensor.shape else 0, tensor.n_bytes
    rows = [n_rows] if len(names) == 1 else _rows(n_rows, len(names), config)
    if len(names) > 1 and min(rows) < 1:
        raise HeaderError(
            f"{tensor.name[:120]} has {n_rows} rows, too few for {len(names)} layers of its folder's sizes. hint: "
            f"{KEY} = the folder of the file's own model"
        )
    row_bytes, start = whole // max(n_rows, 1), tensor.start
    for name, n in zip(names, rows, strict=True):
        n_bytes, shape = (whole, tensor.shape) if len(names) == 1 else (n * row_bytes, (n, *tensor.shape[1:]))
        yield FileTensor(name, shape, tensor.dtype, n_bytes, tensor.file, start, tensor.name, scale=scale)
        start += n_bytes


def _rows(n_rows: int, n_names: int, config: Mapping[str, Any]) -> list[int]:
    """Query, key and value have as many each; behind them a block of Flux has a feed-forward layer in one matrix."""
    width = n_rows // n_names
    if n_names > 3:
        width = int(config["attention_head_dim"]) * int(config["num_attention_heads"])
    found = [width] * (n_names - 1)
    return [*found, n_rows - sum(found)]


def parts_of(found: Iterable[StoredTensor]) -> frozenset[str]:
    """The parts that a file holds."""
    return frozenset(tensor.name.partition(".")[0] for tensor in found)
