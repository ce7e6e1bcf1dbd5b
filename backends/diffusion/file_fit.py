"""Whether a file has the tensors of the networks that its folder describes: told before a load, by the file's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.diffusion import network_shapes, unet_shapes
from backends.diffusion.file_tensors import as_linear, told_shape
from backends.diffusion.layer_names import first_name, plain
from backends.diffusion.original_names import TURNED, originals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backends.diffusion.families import Encoder
    from backends.diffusion.file_tensors import FileTensor
    from backends.diffusion.network_shapes import Shapes

KEY: Final = "image_config"
_HINT: Final = f"hint: {KEY} = the folder of the file's own model"


def fitting(
    made: Iterable[FileTensor], configs: Mapping[str, Mapping[str, Any]], encoders: Mapping[str, Encoder]
) -> list[FileTensor]:
    """Those that the networks have a place for: of text encoders a folder may leave out the last layers.

    Raises HeaderError where one is of another shape, twice there or missing, or has no place.
    """
    parts: dict[str, dict[str, FileTensor]] = {}
    for one in made:
        part, _, name = plain(one.name).partition(".")
        held = parts.setdefault(part, {})
        if name in held:
            raise HeaderError(
                f"the file holds a tensor twice, as {held[name].source[:120]} and as {one.source[:120]}. hint: was it "
                "merged by a script? take the publisher's own"
            )
        held[name] = one
    found: list[FileTensor] = []
    for part, held in parts.items():
        wanted = _wanted(part, configs[part], encoders.get(part))
        if wanted is not None:
            held = {name: one for name, one in held.items() if part not in encoders or name in wanted}
            _check(part, held, wanted, configs[part])
        found += held.values()
    return found


def _wanted(part: str, config: Mapping[str, Any], encoder: Encoder | None) -> Shapes | None:
    """The network's tensors; None where they do not follow from its configuration here. Raises HeaderError."""
    if encoder == "t5":
        return network_shapes.t5(part, config)
    if encoder is not None:
        return network_shapes.clip(part, config, projects=encoder == "clip_projected")
    if part == "transformer":
        return network_shapes.sd3(config) if "sample_size" in config else network_shapes.flux(config)
    if not network_shapes.is_known(config):
        return None
    return unet_shapes.unet(config) if part == "unet" else unet_shapes.vae(config)


def _check(part: str, held: Mapping[str, FileTensor], wanted: Shapes, config: Mapping[str, Any]) -> None:
    """Raises HeaderError."""
    odd = [one for name, one in held.items() if as_linear(one.shape) != as_linear(wanted.get(name, one.shape))]
    if odd:
        ours = wanted[plain(odd[0].name).partition(".")[2]]
        raise HeaderError(
            f"{odd[0].source[:120]} is {told_shape(odd[0].shape)} in the file, and {told_shape(ours)} in its folder's "
            f"{part} ({len(odd)} such tensors). {_HINT}"
        )
    spare = [one.source for name, one in held.items() if name not in wanted]
    if spare:
        raise HeaderError(
            f"the file has {len(spare)} tensors of {part} that its folder has no place for, {spare[0][:120]!r} among "
            f"them. {_HINT}"
        )
    missing = [name for name in wanted if name not in held]
    if missing:
        raise HeaderError(
            f"the file lacks {len(missing)} tensors of its folder's {part}, "
            f"{_their_name(part, missing[0], wanted, config)[:120]!r} among them. hint: was it downloaded completely, "
            f"and is {KEY} the folder of the file's own model?"
        )


def _their_name(part: str, name: str, wanted: Iterable[str], config: Mapping[str, Any]) -> str:
    """What a file would call a tensor of the network that denoises; of others diffusers' own name."""
    layer, _, kind = name.rpartition(".")
    if part == "unet":
        per_block: int = config["layers_per_block"]
        return f"{first_name(layer, per_block)}.{kind}"
    if part != "transformer":
        return f"{part}.{name}"
    layers = {one.rpartition(".")[0] for one in wanted}
    theirs = {ours: theirs for theirs, rows in originals(layers).items() for ours in rows}
    found = theirs.get(layer, TURNED if layer == "norm_out.linear" else layer)
    return f"{found}.{'scale' if found.endswith(('query_norm', 'key_norm')) else kind}"
