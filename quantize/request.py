"""Whether what a user asked for can be had at all, before anything is read. Raises QuantizeError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantize.calibrate import check_text
from quantize.errors import QuantizeError
from quantize.types import FLOATS, is_bnb

if TYPE_CHECKING:
    from quantize.order import Order


def check_request(order: Order) -> None:
    """Sources, types and files that are named, and choices that contradict each other."""
    if not order.source.exists():
        raise QuantizeError(f"{order.source} does not exist", usage=True)
    if order.source.is_file() and any(is_bnb(name) for name in order.types):
        raise QuantizeError(
            f"bitsandbytes quantises Hugging Face folders, and {order.source.name} is a file. "
            "hint: name the model's folder",
            usage=True,
        )
    check_no_base(order)
    if not order.types and order.fit_bytes is None and not order.also:
        raise QuantizeError("nothing to make: --to names types, --fit a size", usage=True)
    _check_choices(order)
    if order.calibrate is not None:
        check_text(order.calibrate)
        if order.imatrix is not None and order.imatrix.exists() and not order.force:
            raise QuantizeError(f"{order.imatrix.name} exists. hint: --force computes it again", usage=True)
    elif order.imatrix is not None and not order.imatrix.is_file():
        raise QuantizeError(f"{order.imatrix} does not exist. hint: --calibrate TEXT computes one", usage=True)
    if order.text is not None:
        check_text(order.text)
    for path in order.also:
        if not path.exists():
            raise QuantizeError(f"{path} does not exist", usage=True)


def check_no_base(order: Order) -> None:
    """Of what is no adapter. Raises QuantizeError."""
    if order.base is not None:
        raise QuantizeError(f"--base is for adapters, and {order.source.name} is none. hint: leave it out", usage=True)


def check_plain(order: Order) -> None:
    """Nothing is quantised or measured where a folder or an adapter is written as it is. Raises QuantizeError."""
    chosen = {
        "--dry-run": order.dry_run,
        "--fit": order.fit_bytes,
        "--imatrix": order.imatrix,
        "--calibrate": order.calibrate,
        "--tensor-type": order.overrides,
        "--output-type": order.output_type,
        "--embedding-type": order.embedding_type,
        "--pure": order.pure,
        "--requantize": order.requantize,
        "--converter": order.converter,
        "--pre-tokenizer": order.pre,
        "--allow-nan": order.allow_nan,
        "--report": order.report,
        "--compare": order.also,
        "--text": order.text,
    }
    if asked := [option for option, value in chosen.items() if value]:
        raise QuantizeError(
            f"{asked[0]} has nothing to say of {', '.join(order.types)}: what is written is as large as its source, "
            "and nothing of it is quantised. hint: leave it out, or name a quantised type",
            usage=True,
        )


def _check_choices(order: Order) -> None:
    """What is chosen for matrices of a GGUF file is obeyed by every output, or refused. Raises QuantizeError."""
    whole = [name for name in order.types if is_bnb(name) or name in FLOATS]
    chosen = {
        "--tensor-type": order.overrides,
        "--output-type": order.output_type,
        "--embedding-type": order.embedding_type,
        "--pure": order.pure,
    }
    if whole and (asked := [option for option, value in chosen.items() if value]):
        raise QuantizeError(
            f"{asked[0]} cannot be had with {whole[0]}, which has one type for all matrices. "
            "hint: make it in a run of its own",
            usage=True,
        )
    if order.types and len(whole) == len(order.types) and order.imatrix is not None and order.calibrate is None:
        raise QuantizeError(
            f"an importance matrix changes nothing in {', '.join(whole)}. hint: leave it out, or name a quantised type",
            usage=True,
        )
