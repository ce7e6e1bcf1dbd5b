"""One run from order to outputs: checks, estimates, conversion, importance matrix, quantisation, report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from backends.files.scratch import scratch_folder
from backends.gguf.info import HeaderInfo
from backends.gguf.servable import unservable
from quantize import adapter, bnb, converter, estimator, merged, quantizer
from quantize.calibrate import calibrate
from quantize.ct2 import whisper as ct2
from quantize.done import Done
from quantize.errors import Interrupted, QuantizeError
from quantize.estimator import Estimate
from quantize.files import check_space, check_target, replacing
from quantize.hf.convert import ConversionPlan, make_plan, write_outline, write_plan
from quantize.hf.source import HfSource, opened
from quantize.hf.tensor import Dtype
from quantize.order import Order, Teller
from quantize.report import measure
from quantize.report.card import contexts_for
from quantize.report.measure import Subject
from quantize.request import check_no_base, check_plain, check_request
from quantize.types import FLOATS, GGUF, HF, is_bnb
from quantize.words import size


@dataclass(frozen=True)
class _Source:
    """The checked source in both shapes it may have."""

    hf: HfSource | None
    plan: ConversionPlan | None
    """How the folder becomes a GGUF file, where this package knows its architecture."""
    base: Path | None
    """GGUF that is there: the source itself, what a user's converter made, or an outline without data."""
    info: HeaderInfo | None


def run(order: Order, tell: Teller) -> Done:
    """Do it. Raises QuantizeError: what was there before is as it was; Interrupted: what was finished is there."""
    if GGUF in order.types:
        return Done([], (), written=[adapter.convert(order, tell)])
    if adapter.is_source(order.source):
        return merged.make(order, tell, run)
    if HF in order.types or ct2.is_source(order.source):
        return Done([], (), written=[_folder(order, tell)])
    check_request(order)
    with ExitStack() as stack:
        source = _read(order, stack, tell)
        if (order.report or order.also) and source.info is not None and source.info.architecture == "bert":
            raise QuantizeError("an encoder predicts no text, so there is nothing to report. hint: leave --report out")
        _check_recipes(order, source, order.types)
        estimates = estimator.choose(order, source.base, source.info, source.hf)
        _check_recipes(order, source, [one.type_name for one in estimates])
        longest = source.info.n_ctx_train if source.info else None
        done = Done(estimates, contexts_for(longest, order.context if order.fit_bytes is not None else None))
        for one in estimates:
            for remark in one.remarks:
                tell.line(f"note: {remark}")
        done.needed_bytes = _bytes_needed(source, estimates)
        if order.dry_run:
            return done
        try:
            _write(order, source, estimates, tell, done)
        except KeyboardInterrupt:
            raise Interrupted([*done.written, *done.reports]) from None
        return done


def _folder(order: Order, tell: Teller) -> Path:
    """A CTranslate2 folder as the Hugging Face folder it was made from. Raises QuantizeError."""
    if not ct2.is_source(order.source):
        raise QuantizeError(
            f"{HF} is for CTranslate2's folders, such as faster-whisper's, and {order.source.name} is none", usage=True
        )
    if order.types != (HF,):
        raise QuantizeError(f"{order.source.name} is CTranslate2's. hint: --to {HF}, and from there on", usage=True)
    target = order.target(HF)
    check_no_base(order)
    check_plain(order)
    tell.line(f"writing {target}")
    ct2.convert(order.source, target, force=order.force)
    return target


def _write(order: Order, source: _Source, estimates: Sequence[Estimate], tell: Teller, done: Done) -> None:
    for one in estimates:
        check_target(order.target(one.type_name), order.source, force=order.force)
    order.folder.mkdir(parents=True, exist_ok=True)
    check_space(order.folder, done.needed_bytes)
    if estimates:
        outputs = "one output" if len(estimates) == 1 else f"{len(estimates)} outputs"
        tell.line(f"writing {outputs}, {size(sum(one.n_bytes for one in estimates))}, to {order.folder}")
    with _base(order, source, estimates, tell, done) as base:
        _make(order, source, base, estimates, tell, done)
        if order.report or order.also:
            _report(order, source, base, estimates, tell, done)


def _read(order: Order, stack: ExitStack, tell: Teller) -> _Source:
    """The source, checked to the last header; a folder's GGUF form as an outline, so that it can be estimated."""
    if order.source.is_file():
        info = quantizer.read_header(order.source)
        if (why := unservable(info)) is not None:
            raise QuantizeError(f"{order.source.name} {why}", usage=True)
        return _Source(None, None, order.source, info)
    hf = stack.enter_context(opened(order.source))
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onecard-")))
    if order.converter is not None:
        order.folder.mkdir(parents=True, exist_ok=True)
        made = stack.enter_context(scratch_folder(order.folder)) / "base.gguf"
        tell.line(f"converting with {order.converter}")
        converter.run(order.converter, order.source, made)
        return _Source(hf, None, made, quantizer.read_header(made))
    wants_gguf = order.fit_bytes is not None or any(not is_bnb(name) for name in order.types)
    outline = scratch / "outline.gguf"
    try:
        plan = make_plan(hf, _base_dtype(hf), pre=order.pre)
        write_outline(plan, outline)
    except QuantizeError:
        if wants_gguf:
            raise
        return _Source(hf, None, None, None)
    for warning in plan.warnings:
        tell.line(f"note: {warning}")
    return _Source(hf, plan, outline, quantizer.read_header(outline))


def _base_dtype(hf: HfSource) -> Dtype:
    """What other types are made from: BF16 stays BF16, everything else becomes F16."""
    return Dtype.BF16 if hf.prevailing_dtype == "BF16" else Dtype.F16


def _check_recipes(order: Order, source: _Source, names: Sequence[str]) -> None:
    for name in names:
        if not is_bnb(name) and source.info is not None:
            matrix = None if order.calibrate else order.imatrix
            wanted = estimator.recipe(order, name, imatrix=matrix)
            quantizer.check(wanted, source.info, matrix_comes=order.calibrate is not None)


def _bytes_needed(source: _Source, estimates: Sequence[Estimate]) -> int:
    total = sum(one.n_bytes for one in estimates)
    has_base = source.plan is None or source.plan.dtype.value in {one.type_name for one in estimates}
    return total if has_base or source.info is None else total + source.info.file_bytes


@contextmanager
def _base(
    order: Order, source: _Source, estimates: Sequence[Estimate], tell: Teller, done: Done
) -> Iterator[Path | None]:
    """The full-precision GGUF that the rest is made from and measured against; a temporary one goes at the end."""
    if source.plan is None:
        yield source.base
        return
    names = [one.type_name for one in estimates]
    needs_base = order.report or order.calibrate or any(not is_bnb(n) and n not in FLOATS for n in names) or order.also
    for name in names:
        if name in FLOATS:
            plan = (
                source.plan
                if name == source.plan.dtype.value
                else make_plan(source.plan.source, Dtype(name), pre=source.plan.pre)
            )
            _convert(order, plan, order.target(name), tell)
            done.written.append(order.target(name))
    if source.plan.dtype.value in names:
        yield order.target(source.plan.dtype.value)
    elif needs_base:
        with scratch_folder(order.folder) as folder:
            base = folder / "base.gguf"
            _convert(order, source.plan, base, tell)
            yield base
    else:
        yield None


def _convert(order: Order, plan: ConversionPlan, target: Path, tell: Teller) -> None:
    with replacing(target) as temporary:
        write_plan(
            plan,
            temporary,
            progress=lambda n, total: tell.progress(f"converting to {plan.dtype.value}", n, total),
            allow_nan=order.allow_nan,
        )
        quantizer.read_header(temporary)


def _make(
    order: Order, source: _Source, base: Path | None, estimates: Sequence[Estimate], tell: Teller, done: Done
) -> None:
    matrix = order.imatrix if order.calibrate is None else _calibrated(order, source, base, tell, done)
    for one in estimates:
        target = order.target(one.type_name)
        if target in done.written:
            continue
        if is_bnb(one.type_name):
            assert source.hf is not None
            tell.line(f"quantising to {one.type_name} with bitsandbytes")
            bnb.quantize(source.hf, target, one.type_name, allow_nan=order.allow_nan)
        else:
            _quantize(order, base, source, one, matrix, tell)
        done.written.append(target)


def _calibrated(order: Order, source: _Source, base: Path | None, tell: Teller, done: Done) -> Path:
    assert base is not None
    assert source.info is not None
    assert order.calibrate is not None
    calibrate(
        base,
        order.calibrate,
        order.imatrix_target,
        n_ctx_train=source.info.n_ctx_train or 512,
        threads=order.threads,
        progress=lambda n, total: tell.progress("importance matrix", n, total),
    )
    done.written.append(order.imatrix_target)
    return order.imatrix_target


def _quantize(
    order: Order, base: Path | None, source: _Source, one: Estimate, matrix: Path | None, tell: Teller
) -> None:
    assert base is not None
    assert source.info is not None
    wanted = estimator.recipe(order, one.type_name, imatrix=matrix)
    quantizer.check(wanted, source.info)
    quantizer.quantize(
        base,
        order.target(one.type_name),
        wanted,
        progress=lambda n, total: tell.progress(f"quantising to {one.type_name}", n, total),
        expected_bytes=one.n_bytes,
    )


def _report(
    order: Order, source: _Source, base: Path | None, estimates: Sequence[Estimate], tell: Teller, done: Done
) -> None:
    reference = base or order.source
    said = source.plan.dtype.value if source.plan else "source"
    subjects = [Subject(one.type_name, order.target(one.type_name), one.remarks) for one in estimates]
    subjects += [Subject(path.stem.removeprefix(f"{order.model_name}-"), path) for path in order.also]
    subjects = [subject for subject in subjects if subject.path != reference]
    done.card = measure.measure(order, Subject(said, reference), source.info, subjects, tell)
    done.reports = measure.write(done.card, order)
