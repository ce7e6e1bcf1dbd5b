"""Fixtures that more than one room of the suite uses."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import demo
from tests import exceptions, selection
from tests.models import canary_kv, canary_p

BACKENDS = ("gguf", "bnb")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full-counts` runs soaks and storms for as long as their figures ask, minutes instead of seconds."""
    parser.addoption("--full-counts", action="store_true", help="soaks and storms at their full counts")


@pytest.fixture(scope="session")
def full_counts(request: pytest.FixtureRequest) -> bool:
    """Whether a soak is to run for minutes."""
    return bool(request.config.getoption("--full-counts"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that has nothing to run."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and selection.holds_none(collection_path.read_text(), str(config.option.markexpr)):
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: walking over it again and again takes 40 % of its time, in each process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and leave out what `exceptions` lists."""
    items.sort(key=lambda item: selection.place(item.nodeid.partition("::")[0]))
    for item in items:
        given = (
            item.callspec.params.get("backend")
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else None
        )
        if given and (reason := exceptions.reason_of(item.nodeid, str(given))):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What servers learn in tests is kept away from the user's own, and forgotten with them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Whatever is asked of a real model is asked of both backends; what is a fact of one stands in `exceptions`."""
    return str(request.param)


@pytest.fixture(scope="session")
def demo_model(backend: str) -> Path:
    """The demo model as this backend reads it."""
    return demo.GGUF_PATH if backend == "gguf" else demo.HF_PATH


@pytest.fixture(scope="session")
def canary_model(backend: str, request: pytest.FixtureRequest) -> Path:
    """CANARY-P as this backend reads it."""
    path: Path = request.getfixturevalue("canary_path" if backend == "gguf" else "canary_folder")
    return path


@pytest.fixture(scope="session")
def canary_kv_model(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-KV with full attention as this backend reads it."""
    folder = tmp_path_factory.mktemp("canary-kv")
    return canary_kv.build(folder / "kv.gguf", "full") if backend == "gguf" else canary_kv.build_folder(folder / "kv")


@pytest.fixture(scope="session")
def canary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-P as a Hugging Face folder."""
    return canary_p.build_folder(tmp_path_factory.mktemp("canary-hf"))


@pytest.fixture(scope="session")
def canary_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CANARY-P as a GGUF file."""
    return canary_p.build(tmp_path_factory.mktemp("canary") / "canary-p.gguf")
