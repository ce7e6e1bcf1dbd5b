"""Outputs of llama.cpp's quantiser: exact estimates, the bytes of another converter's file, safe on failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.gguf import header
from quantize import quantizer
from quantize.errors import QuantizeError
from quantize.files import replacing
from quantize.hf.convert import make_plan, write_plan
from quantize.hf.source import opened
from quantize.hf.tensor import Dtype
from quantize.types import FILE_TYPES, NEED_IMATRIX, parse_types
from tests.models.shapes import finish
from tests.quantize.conftest import GGUF, HF, make
from tests.quantize.zoo import build

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("type_name", sorted(set(FILE_TYPES) - NEED_IMATRIX - {"Q1_0"}))
def test_price_is_the_size_of_the_file_for_every_type(tmp_path: Path, type_name: str) -> None:
    done = make(GGUF, tmp_path, type_name)
    assert done.estimates[0].n_bytes == done.written[0].stat().st_size
    header.read(done.written[0])


def test_quantised_tensors_are_those_made_from_another_converters_file(tmp_path: Path) -> None:
    (ours,) = make(HF, tmp_path / "ours", "Q4_K_M").written
    (theirs,) = make(GGUF, tmp_path / "theirs", "Q4_K_M").written
    one, other = ({t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    assert one == other


def test_overrides_and_pure_are_obeyed(tmp_path: Path) -> None:
    (mixed,) = make(GGUF, tmp_path / "a", "Q4_0", overrides=(("ffn_down", "q8_0"),), embedding_type="F16").written
    types = {tensor.name: tensor.type_name for tensor in header.read(mixed).tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["token_embd.weight"] == "F16"
    (pure,) = make(GGUF, tmp_path / "b", "Q4_0", pure=True).written
    assert {t.type_name for t in header.read(pure).tensors if len(t.shape) > 1} == {"Q4_0"}


def test_split_source_is_read(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(GGUF)
    writers = [gguf.GGUFWriter(tmp_path / f"m-0000{i}-of-00002.gguf", "llama") for i in (1, 2)]
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writers[0].add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for i, writer in enumerate(writers):
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i::2]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        finish(writer)
    (whole,) = make(tmp_path / "m-00001-of-00002.gguf", tmp_path / "out", "Q8_0").written
    assert whole.name == "m-Q8_0.gguf"
    (plain,) = make(GGUF, tmp_path / "plain", "Q8_0").written
    one, other = ({t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors} for path in (whole, plain))
    assert one == other


def test_fit_takes_the_largest_type_that_fits(tmp_path: Path) -> None:
    folder = build("llama2", tmp_path / "wide", hidden_size=256, intermediate_size=512)
    estimated = make(folder, tmp_path, "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", dry_run=True).estimates
    estimates = {one.type_name: one for one in estimated}
    limit = estimates["Q6_K"].memory(512, "cuda")
    assert limit is not None
    done = make(folder, tmp_path / "out", fit_bytes=limit, context=512)
    assert [one.type_name for one in done.estimates] == ["Q6_K"]
    assert done.written[0].name == "wide-Q6_K.gguf"


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = make(HF, tmp_path / "out", "Q8_0", "F16", "bnb-8bit", dry_run=True)
    assert [one.type_name for one in done.estimates] == ["Q8_0", "F16", "bnb-8bit"]
    assert not (tmp_path / "out").exists()
    assert done.written == []


def test_types_are_read_in_any_spelling() -> None:
    assert parse_types("q4_k, Q8-0 ,BNB-NF4,bnb_8bit,q4_K_M") == ["Q4_K_M", "Q8_0", "bnb-4bit", "bnb-8bit"]
    with pytest.raises(QuantizeError, match="'Q4_KM' is no type; the nearest is Q4_K_M"):
        parse_types("Q4_KM")


def test_foreign_converter_runs_in_its_own_environment(tmp_path: Path) -> None:
    checkout = tmp_path / "llama.cpp"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    script = checkout / "convert_hf_to_gguf.py"
    script.write_text(f"import shutil, sys; shutil.copyfile({str(GGUF)!r}, sys.argv[sys.argv.index('--outfile') + 1])")
    done = make(HF, tmp_path / "out", "Q8_0", converter=checkout)
    assert header.read(done.written[0]).architecture == "llama"
    script.write_text("import sys; sys.exit('no such architecture')")
    with pytest.raises(QuantizeError, match="no such architecture"):
        make(HF, tmp_path / "other", "Q8_0", converter=checkout)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"hf-Q8_0.gguf"} or done.written[
        0
    ].parent == tmp_path / "out"


@pytest.fixture
def full_disk(tmp_path: Path):
    """Two MiB of disk."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk_leaves_the_old_file_and_no_half_one(full_disk: Path) -> None:
    target = full_disk / "m.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(QuantizeError, match=r"the disk is full: m.gguf needs 3.4 MiB"):
        quantizer.quantize(GGUF, target, quantizer.Recipe("BF16"), expected_bytes=3578560)
    assert {path.name: path.read_bytes() for path in full_disk.iterdir()} == {"m.gguf": b"precious"}
    with opened(HF) as source, pytest.raises(QuantizeError, match="the disk is full"), replacing(target) as temporary:
        write_plan(make_plan(source, Dtype.F16), temporary)
    assert {path.name: path.read_bytes() for path in full_disk.iterdir()} == {"m.gguf": b"precious"}
    with pytest.raises(QuantizeError, match=r"the outputs need .* are free"):
        make(GGUF, full_disk, "Q8_0")
