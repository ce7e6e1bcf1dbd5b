"""Networks read into host memory: of a folder, or out of a model's one file as diffusers' own converters do it.

Nothing is fetched. diffusers' `ModelMixin.from_pretrained` and `FromOriginalModelMixin.from_single_file`; for text
encoders, which are transformers' classes, what diffusers' pipelines call to convert them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import load_file

from backends.diffusion.layer_names import plain
from backends.diffusion.library import create_clip, create_t5
from backends.diffusion.single_file import KEY
from backends.engine import LoadError
from backends.machine.crash_reason import in_words
from backends.pytorch import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from backends.diffusion.header import DrawHeader
    from backends.diffusion.single_file import Places

_UNUSED: Final = ("position_ids",)
"""Endings of tensors that folders leave out, because they are computed."""


def read_network(kind: Any, part: str, where: Places, header: DrawHeader, dtype: torch.dtype) -> Any:
    """One of a model's networks by the name of its folder, evaluating. Raises LoadError."""
    try:
        if part in header.in_file:
            network = _of_file(kind, part, where, header, dtype)
            missing, spare = _missing(network, part, header), _spare(network, part, header)
        else:
            network, told = kind.from_pretrained(
                str(where.folder / part),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                variant="fp16" if part in header.halves else None,
                dtype=dtype,
            )
            missing, spare = told["missing_keys"], ()
    except Exception as error:  # whatever a stranger's files make the library raise is a failed load
        raise failed_load(error, part) from error
    lacking = sorted(name for name in missing if not name.endswith(_UNUSED))
    if lacking:
        raise LoadError(
            f"{part} lacks {len(lacking)} tensors, {lacking[0]} among them. hint: was it downloaded completely?"
        )
    if spare:
        raise LoadError(
            f"the file has {len(spare)} tensors of {part} that its folder has no place for, {spare[0][:120]!r} among "
            f"them. hint: {KEY} = the folder of the file's own model"
        )
    return network.eval().requires_grad_(requires_grad=False)


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


def failed_load(error: Exception, part: str) -> LoadError:
    """What an exception while a network is read or placed comes to."""
    if shortage.is_shortage(error):
        return LoadError(f"no memory is left for {part}: {shortage.told(error)}", out_of_memory=True)
    return LoadError(f"{part} cannot be loaded: {in_words(error)}")


def _of_file(kind: Any, part: str, where: Places, header: DrawHeader, dtype: torch.dtype) -> Any:
    held = load_file(where.file) if where.file is not None else {}  # mapped: what is not asked for stays on the disk
    given = {"config": str(where.folder), "subfolder": part, "local_files_only": True}
    encoder = header.text_encoders.get(part)
    if encoder is None:
        return kind.from_single_file(held, dtype=dtype, **given)
    create = create_t5 if encoder == "t5" else create_clip
    made = create(kind, held, torch_dtype=dtype, **given)
    made.tie_weights()
    return made


def _missing(network: Any, part: str, header: DrawHeader) -> Sequence[str]:
    """Names of tensors that the network has and the file has not."""
    have, seen, found = {plain(tensor.name) for tensor in header.tensors}, set[int](), []
    for name, tensor in network.state_dict().items():
        place = 0 if tensor.is_meta else tensor.data_ptr()
        if plain(f"{part}.{name}") not in have and place not in seen:
            found.append(name)
        seen |= {place} - {0}  # what is tied to another tensor is not stored again
    return found
