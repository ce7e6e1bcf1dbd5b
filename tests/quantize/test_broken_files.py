"""Every broken GGUF of the table as a source: a sentence or a sound file, never a half one."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf import header
from quantize.errors import QuantizeError
from tests.models.broken import TABLE
from tests.quantize.conftest import make

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("broken", [one for one in TABLE if one.judge == "header"], ids=lambda one: one.name)
def test_file_that_lies_is_refused_before_llama_cpp_sees_it(tmp_path: Path, broken) -> None:
    source = tmp_path / "broken.gguf"
    source.write_bytes(broken.make())
    with pytest.raises(QuantizeError, match=r"^broken.gguf: "):
        make(source, tmp_path / "out", "Q4_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [one for one in TABLE if one.judge == "engine"], ids=lambda one: one.name)
def test_model_that_makes_no_sense_ends_in_a_sentence_or_a_sound_file(tmp_path: Path, broken) -> None:
    source = tmp_path / "broken.gguf"
    source.write_bytes(broken.make())
    try:
        make(source, tmp_path / "out", "Q4_0")
    except QuantizeError:
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    else:
        (made,) = (tmp_path / "out").iterdir()
        header.read(made)
