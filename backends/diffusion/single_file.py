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
from backends.diffusion.original_names import FLUX, SD3, diffusers_names
from backends.diffusion.unet_names import unet_name
from backends.files import model_files, tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backends.backend import Setting
    from backends.files.tensors import StoredTensor

KEY: Final = "image_config"
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
_FLOATS: Final = ("F32", "F16", "BF16")
_IGNORED: Final = ("position_ids", "logit_scale", "embed_tokens.weight")
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
_VAE: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(encoder|decoder)\.mid\.block_1\.(.+)", r"\1.mid_block.resnets.0.\2"),
        (r"(encoder|decoder)\.mid\.block_2\.(.+)", r"\1.mid_block.resnets.1.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.norm\.(.+)", r"\1.mid_block.attentions.0.group_norm.\2"),
        (r"(encoder|decoder)\.mid\.attn_1\.(q|k|v)\.(.+)", r"\1.mid_block.attentions.0.to_\2.\3"),
        (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.(.+)", r"\1.mid_block.attentions.0.to_out.0.\2"),
        (r"(encoder|decoder)\.norm_out\.(.+)", r"\1.conv_norm_out.\2"),
        (r"encoder\.down\.(\d{1,3})\.block\.(\d{1,3})\.(.+)", r"encoder.down_blocks.\1.resnets.\2.\3"),
        (r"encoder\.down\.(\d{1,3})\.downsample\.(.+)", r"encoder.down_blocks.\1.downsamplers.0.\2"),
        (r"decoder\.up\.(\d{1,3})\.block\.(\d{1,3})\.(.+)", r"decoder.up_blocks.\1.resnets.\2.\3"),
        (r"decoder\.up\.(\d{1,3})\.upsample\.(.+)", r"decoder.up_blocks.\1.upsamplers.0.\2"),
        (r"((?:encoder|decoder)\.conv_(?:in|out)\..+|(?:post_)?quant_conv\..+)", r"\1"),
    )
)
_UP: Final = re.compile(r"(decoder\.up_blocks\.)(\d{1,3})(\..+)")
_OPEN_CLIP: Final[Mapping[str, str]] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_ENDS: Final[Mapping[str, str]] = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_PROJECTION: Final = "text_projection"
_POSITIONS: Final = "text_encoder.text_model.embeddings.position_embedding.weight"
_FIRST_PROJECTION: Final = "text_encoder.text_projection.weight"
_RESBLOCK: Final = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)\.(weight|bias)")
_IN_PROJ: Final = re.compile(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)")
_MODEL: Final = "text_model."

Named = tuple[str, ...]
"""diffusers' names of the tensors that lie behind each other in the rows of one; none where it is not loaded."""


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


def stored(file: Path, configs: Mapping[str, Mapping[str, Any]], pipeline: str) -> list[StoredTensor]:
    """What of a file is loaded, its part before its name, as diffusers calls it.

    `configs` are those of the folder's networks, by their parts. Raises HeaderError or FileError.
    """
    held = tensors.of_file(file)[0]
    if (found := _pipeline({tensor.name for tensor in held})) != pipeline:
        raise HeaderError(
            f"the file holds a {found}, and its folder of configurations is of a {pipeline}. hint: {KEY} = the folder "
            "of the file's own model"
        )
    converters = _converters(configs, pipeline)
    made = [
        one
        for tensor in held
        for prefix, part, names_of in converters
        if tensor.name.startswith(prefix)
        for one in _in_rows(tensor, part, names_of(tensor.name.removeprefix(prefix)), configs)
    ]
    _check(made, configs)
    return [*made, *_identity(made, pipeline)]


def _identity(made: Sequence[StoredTensor], pipeline: str) -> list[StoredTensor]:
    """Stable Diffusion 3's first CLIP does not project: its files lack that matrix, and diffusers makes it."""
    positions = next((one for one in made if one.name == _POSITIONS and len(one.shape) == 2), None)
    is_stored = any(one.name == _FIRST_PROJECTION for one in made)
    if pipeline != "StableDiffusion3Pipeline" or positions is None or is_stored:
        return []
    return [dataclasses.replace(positions, name=_FIRST_PROJECTION, shape=(positions.shape[1],) * 2, n_bytes=0)]


def _check(made: Sequence[StoredTensor], configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises HeaderError."""
    if (odd := next((one for one in made if one.dtype not in _FLOATS), None)) is not None:
        raise HeaderError(
            f"{odd.name[:120]} is stored as {odd.dtype}, which onecard does not read. hint: take the file in 16 bits, "
            "and quantization = 'bnb-8bit' or 'bnb-4bit'"
        )
    first = next((one for one in made if one.name == "unet.conv_in.weight" and len(one.shape) == 4), None)
    if first is not None and first.shape[1] != configs["unet"]["in_channels"]:
        raise HeaderError(
            f"the file's U-Net takes {first.shape[1]} channels and its folder's {configs['unet']['in_channels']}: one "
            "is made for inpainting alone. hint: take the plain model"
        )


Converter = tuple[str, str, Callable[[str], Named]]
"""How the names of a part's tensors begin, the part's folder, and its names."""


def _converters(configs: Mapping[str, Mapping[str, Any]], pipeline: str) -> Sequence[Converter]:
    n_up, encoders = len(configs["vae"]["block_out_channels"]), FAMILIES[pipeline].encoders
    found: list[Converter] = [
        (one, "vae", lambda name: _vae_name(name, n_up)) for one in ("first_stage_model.", "vae.")
    ]
    if "unet" in configs:
        layers = configs["unet"]["layers_per_block"]
        per_block = max(layers) if isinstance(layers, list) else layers
        found.append((_DENOISER, "unet", lambda name: unet_name(name, per_block)))
    else:
        table = FLUX if pipeline == "FluxPipeline" else SD3
        found += [(prefix, "transformer", lambda name: _joint_names(name, table)) for prefix in (_DENOISER, "")]
    t5 = next((part for part, kind in encoders.items() if kind == "t5"), "")
    for prefix, part in {**_CLIP, "text_encoders.t5xxl.transformer.": t5}.items():
        if part in configs:
            found.append((prefix, part, _as_it_is(projects=encoders[part] == "clip_projected")))
    for prefix, part in _IN_OPEN_CLIP.items():
        if part in configs and part != t5:
            n_layers = int(configs[part]["num_hidden_layers"])
            found.append((prefix, part, _of_open_clip(n_layers, projects=encoders[part] == "clip_projected")))
    return found


def _as_it_is(*, projects: bool) -> Callable[[str], Named]:
    """In transformers' names; what is computed, or stored twice, is left out."""

    def names_of(name: str) -> Named:
        unused = name.endswith(_IGNORED) or (name.startswith(_PROJECTION) and not projects)
        return () if unused else (name,)

    return names_of


def _of_open_clip(n_layers: int, *, projects: bool) -> Callable[[str], Named]:
    """Of the first `n_layers`: the folder's configuration may leave out the last."""

    def names_of(name: str) -> Named:
        if name == _PROJECTION:
            return (f"{_PROJECTION}.weight",) if projects else ()
        if name in _OPEN_CLIP_ENDS:
            return (_MODEL + _OPEN_CLIP_ENDS[name],)
        if (match := _IN_PROJ.fullmatch(name)) is not None and int(match[1]) < n_layers:
            return tuple(f"{_MODEL}encoder.layers.{match[1]}.self_attn.{one}_proj.{match[2]}" for one in "qkv")
        match = _RESBLOCK.fullmatch(name)
        if match is None or int(match[1]) >= n_layers or match[2] not in _OPEN_CLIP:
            return ()
        return (f"{_MODEL}encoder.layers.{match[1]}.{_OPEN_CLIP[match[2]]}.{match[3]}",)

    return names_of


def _vae_name(name: str, n_up: int) -> Named:
    for pattern, ours in _VAE:
        if pattern.fullmatch(name) is not None:
            found = pattern.sub(ours, name).replace("nin_shortcut", "conv_shortcut")
            return (_UP.sub(lambda up: f"{up[1]}{n_up - 1 - int(up[2])}{up[3]}", found),)
    return ()


def _joint_names(name: str, table: Mapping[str, Named]) -> Named:
    if name == "pos_embed":
        return ("pos_embed.pos_embed",)
    layer, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias", "scale"):
        return ()  # files in 8 bits have numbers beside each matrix
    return tuple(f"{one}.{'weight' if kind == 'scale' else kind}" for one in diffusers_names(layer, table))


def _in_rows(
    tensor: StoredTensor, part: str, names: Named, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[StoredTensor]:
    """The tensors that one of the file is to diffusers. Raises HeaderError."""
    if len(names) < 2:
        yield from (dataclasses.replace(tensor, name=f"{part}.{name}") for name in names)
        return
    n_rows = _rows(tensor.shape[0] if tensor.shape else 0, len(names), configs[part])
    if min(n_rows) < 1:
        raise HeaderError(
            f"{tensor.name[:120]} has {tensor.shape[0] if tensor.shape else 0} rows, too few for {len(names)} layers "
            f"of its folder's sizes. hint: {KEY} = the folder of the file's own model"
        )
    row_bytes, first = tensor.n_bytes // tensor.shape[0], 0
    for name, n in zip(names, n_rows, strict=True):
        yield dataclasses.replace(
            tensor,
            name=f"{part}.{name}",
            shape=(n, *tensor.shape[1:]),
            n_bytes=n * row_bytes,
            start=tensor.start + first * row_bytes,
        )
        first += n


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
