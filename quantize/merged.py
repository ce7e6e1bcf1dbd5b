"""An adapter within its base, as a folder and in the types that are made of it: checks, disk, order of work."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.bnb.stored import HEADS
from backends.files.scratch import scratch_folder
from quantize import converter, merge
from quantize.done import Done
from quantize.errors import Interrupted, QuantizeError
from quantize.files import check_space, check_target
from quantize.order import Order, Teller, Unheard, model_name
from quantize.request import check_plain, check_request
from quantize.types import HF, least_bytes
from quantize.words import size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def make(order: Order, tell: Teller, run: Callable[[Order, Teller], Done]) -> Done:
    """The folder (`hf`) and other types, which `run` makes of it. Raises QuantizeError, Interrupted."""
    if order.base is None:
        raise QuantizeError(
            "which model the adapter is for is not taken from its own files. hint: --base FOLDER names the one it was "
            "trained on, to be merged; --to gguf --base MODEL.gguf makes an adapter for a GGUF file",
            usage=True,
        )
    wanted = merge.checked(order.source, order.base)
    others = tuple(name for name in order.types if name != HF)
    plain = replace(order, source=order.base, base=None, types=others, name=order.model_name)
    more = bool(others) or order.fit_bytes is not None or HF not in order.types
    if not more:
        check_plain(order)
    made, further_bytes = [HF] if HF in order.types else [], 0
    if order.dry_run:
        foreseen = run(replace(plain, report=False, also=()), tell)
        for name in made:
            tell.line(f"{name}: {size(merge.n_bytes(wanted))} as {order.target(name).name}, the merged folder")
        return foreseen
    if more:
        names, further_bytes = _foreseen(plain, wanted, run)
        made += names
    for name in made:
        for path in (order.source, order.base):
            check_target(order.target(name), path, force=order.force)
    order.folder.mkdir(parents=True, exist_ok=True)
    check_space(order.folder, merge.n_bytes(wanted) + further_bytes)
    with ExitStack() as stack:
        scratch = None if HF in order.types else stack.enter_context(scratch_folder(order.folder))
        folder = order.target(HF) if scratch is None else scratch / order.model_name
        told = f"merging {order.model_name} into {model_name(order.base)}"
        tell.line(told if scratch else f"{told}: writing {folder}")
        merge.write_merged(wanted, folder, tell, force=order.force)
        kept = [] if scratch else [folder]
        try:
            done = run(replace(plain, source=folder), tell) if more else Done([], ())
        except Interrupted as stop:
            raise Interrupted([*kept, *stop.written]) from None
        return replace(done, written=[*kept, *done.written])


def _foreseen(order: Order, wanted: merge.Merge, run: Callable[[Order, Teller], Done]) -> tuple[Sequence[str], int]:
    """The types that will be made of the merged folder, and bytes that they need beside it. `order` is of the base.

    A merged model is as large as its base. Of what another converter makes that is a least, and what `--fit` chooses
    of it is not known before. Raises QuantizeError.
    """
    if order.converter is None:
        found = run(replace(order, dry_run=True, report=False, also=()), Unheard())
        return [one.type_name for one in found.estimates], found.needed_bytes
    check_request(order)
    converter.find(order.converter)
    if wanted.info.sight is not None:  # which a GGUF file of its text lacks
        return order.types, 0
    n_weights = sum(one.n_elements for one in wanted.info.tensors if not one.name.endswith(HEADS))
    chosen = order.overrides or order.output_type or order.embedding_type  # with which outputs may be smaller
    outputs = 0 if chosen else sum(least_bytes(name, n_weights) for name in order.types)
    return order.types, least_bytes("F16", n_weights) + outputs
