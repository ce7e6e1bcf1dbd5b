"""Networks read into their places: of a folder as the libraries do it, out of one file tensor by tensor.

Nothing is fetched. diffusers' and transformers' `from_pretrained`, and `backends.diffusion.streaming`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from backends.diffusion.file_fit import KEY
from backends.diffusion.library import empty_weights
from backends.diffusion.packing import pack
from backends.diffusion.streaming import Filler
from backends.engine import LoadError
from backends.files import model_files
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from backends.diffusion.header import DrawHeader
    from backends.diffusion.kind import Quantization
    from backends.diffusion.single_file import Places
    from backends.messages import Device

_UNUSED: Final = ("position_ids",)
"""Endings of tensors that folders leave out, because they are computed."""


@dataclass(frozen=True)
class Target:
    """How a network shall lie in memory."""

    dtype: torch.dtype
    quantization: Quantization
    place: Device
    """Where its tensors are."""
    device: Device
    """Where it computes."""


def read_network(kind: Any, part: str, where: Places, header: DrawHeader, target: Target) -> Any:
    """One of a model's networks by the name of its folder, evaluating, in its place. Raises LoadError."""
    try:
        if part in header.in_file:
            network = _of_file(kind, part, where, header, target)
            missing, spare = _missing(network), _spare(network, part, header)
        else:
            network, told = _of_folder(kind, part, where, header, target)
            missing, spare = told["missing_keys"], ()
        lacking = sorted(name for name in missing if not name.endswith(_UNUSED))
        if lacking:
            raise LoadError(
                f"{part} lacks {len(lacking)} tensors, {lacking[0]} among them. hint: was it downloaded completely?"
            )
        if spare:
            raise LoadError(
                f"the file has {len(spare)} tensors of {part} that its folder has no place for, {spare[0][:120]!r} "
                f"among them. hint: {KEY} = the folder of the file's own model"
            )
        network.eval().requires_grad_(requires_grad=False)
        if target.quantization != "none" and part not in header.in_file:
            pack(network, target.quantization, target.place, target.device)
        return network.to(target.place)
    except (LoadError, model_files.FileError):
        raise
    except Exception as error:  # whatever a stranger's files make the library raise is a failed load
        raise _failed(error, part) from error


def _of_folder(kind: Any, part: str, where: Places, header: DrawHeader, target: Target) -> Any:
    return kind.from_pretrained(
        str(where.folder / part),
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        variant="fp16" if part in header.halves else None,
        dtype=target.dtype,
    )


def _spare(network: Any, part: str, header: DrawHeader) -> Sequence[str]:
    """The other way round. Of text encoders a folder may leave out the last layers."""
    if part in header.text_encoders:
        return ()
    have = network.state_dict()
    return sorted(
        name
        for name in (one.name.removeprefix(f"{part}.") for one in header.tensors if one.name.startswith(f"{part}."))
        if name not in have
    )


def _failed(error: Exception, part: str) -> LoadError:
    if shortage.is_shortage(error):
        return LoadError(f"no memory is left for {part}: {shortage.told(error)}", out_of_memory=True)
    return LoadError(f"{part} cannot be loaded: {in_words(error)}")


def _of_file(kind: Any, part: str, where: Places, header: DrawHeader, target: Target) -> Any:
    if where.file is None:
        raise LoadError(f"{part} is in a file, and there is none")
    given = {"subfolder": part, "local_files_only": True}
    with empty_weights():
        if part in header.text_encoders:
            network = kind(kind.config_class.from_pretrained(str(where.folder), **given))
        else:
            network = kind.from_config(kind.load_config(str(where.folder), **given))
    filler = Filler(target.dtype, target.quantization, target.place, target.device)
    filler.fill(network, part, where.file, header.tensors)
    if part in header.text_encoders:
        network.tie_weights()
    return network


def _missing(network: Any) -> Sequence[str]:
    """Names of tensors that the network has and the file has not."""
    return sorted(name for name, tensor in network.state_dict().items() if tensor.is_meta)
