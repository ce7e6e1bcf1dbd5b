"""Five hundred images that mean no good: none ends a worker, each is read or refused by name, and memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.engine import AnyEngine, JobError
from backends.files.pictures import MOST_PIXELS
from backends.generation.sequence import PreparedGenerate
from tests.models import seeing
from tests.seeing import hostile
from tests.seeing.driver import look, open_seer

pytestmark = pytest.mark.engine
REFUSED, ODD = list(hostile.refused()), list(hostile.odd())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyEngine]:
    running = open_seer(seeing.build(tmp_path_factory.mktemp("hostile"), "plain"))
    yield running
    running.close()


def told(engine: AnyEngine, data: bytes) -> str:
    """What is said of an image; empty where it is taken."""
    try:
        prepared = engine.prepare(look([[7, 8], data, [9]]))
    except JobError as error:
        refusal = error
    else:
        assert isinstance(prepared, PreparedGenerate)
        return ""
    assert refusal.code == "unsupported_media"
    assert refusal.message.startswith("image 1 of the prompt")
    return refusal.message


@pytest.mark.parametrize(("name", "data"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_image_or_too_large_is_refused(engine: AnyEngine, name: str, data: bytes) -> None:
    assert told(engine, data), name


@pytest.mark.parametrize(("name", "data"), ODD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_odd_is_read(engine: AnyEngine, name: str, data: bytes) -> None:
    assert told(engine, data) == "", name


def test_bytes_that_are_turned_cost_their_own_request(engine: AnyEngine) -> None:
    answers = [told(engine, data) for _, data in hostile.mangled(460)]
    assert len(answers) - answers.count("") > 50
    assert answers.count("") > 50


def test_memory_is_bounded(engine: AnyEngine) -> None:
    """By what a footprint counts for an image on its way, whatever was sent before."""
    for name, data in ODD + REFUSED:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = kib("VmRSS")
        told(engine, data)
        assert kib("VmHWM") - began < 3 * 4 * MOST_PIXELS >> 10, name


def kib(field: str) -> int:
    """A figure of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
