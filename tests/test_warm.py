"""A copy does what a Python that starts would: arguments, environment, folder, files, signals and ends are its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.e2e.server import until
from tests.present import present

ENV = {**os.environ, "PYTHONPATH": str(warm.ROOT), "COLUMNS": "70", "OF_ITS_OWN": "é"}


def alone(module: str, arguments: list[str], folder: Path, heard: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=ENV, cwd=folder, capture_output=True, text=True, check=False, input=heard)


@pytest.mark.parametrize("arguments", [["list"], ["--version"], ["nonsense"], ["ps", "--url", "http://127.0.0.1:9"]])
def test_a_command_says_and_ends_with_what_it_does_by_itself(arguments: list[str], tmp_path: Path) -> None:
    expected = alone("server.cli", arguments, tmp_path, "")

    copied = warm.run("server.cli", arguments, env=ENV, cwd=tmp_path)

    assert (copied.returncode, copied.stdout, copied.stderr) == (expected.returncode, expected.stdout, expected.stderr)


@pytest.mark.parametrize("end", ["0", "7", "killed", "raises"])
def test_what_a_process_has_from_its_start_is_the_same(end: str, tmp_path: Path) -> None:
    expected = alone("tests.telling", [end, "a b"], tmp_path, "heard")

    copied = warm.run("tests.telling", [end, "a b"], env=ENV, cwd=tmp_path, input="heard")

    assert copied.returncode == expected.returncode
    for one, other in zip(copied.stdout.splitlines(), expected.stdout.splitlines(), strict=True):
        assert (json.loads(one) == json.loads(other)) if one.startswith("{") else one == other
    assert copied.stderr.splitlines()[0] == expected.stderr.splitlines()[0]
    assert copied.stderr.splitlines()[-1] == expected.stderr.splitlines()[-1]


def test_signals_reach_it_and_its_end_is_told() -> None:
    child = warm.popen("tests.telling", ["waits"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENV)
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)

    child.send_signal(signal.SIGTERM)

    assert child.wait(10) == child.poll() == -signal.SIGTERM
    child.kill()  # of what has ended nothing is killed


def test_a_ctrl_c_ends_the_copy_and_not_who_tells_of_its_end() -> None:
    child = warm.popen("tests.telling", ["waits"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENV)
    assert present(child.stdout).readline()
    teller = psutil.Process(child.pid).parents()[0]

    for one in (teller.ppid(), teller.pid, child.pid):
        os.kill(one, signal.SIGINT)

    assert child.wait(10) == -signal.SIGINT
    assert warm.run("server.cli", ["--version"], env=ENV).returncode == 0
    present(child.stdout).close()


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        warm.run("tests.telling", ["waits"], env=ENV, timeout=2)

    assert caught.value.timeout == 2


def test_an_output_that_a_child_of_it_holds_open_is_waited_for_no_longer() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run("tests.telling", ["leaves"], env=ENV, timeout=2)


def test_what_only_a_start_heeds_starts_a_python() -> None:
    child = warm.popen(
        "tests.telling", ["0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**ENV, "PYTHONUTF8": "0"}
    )

    assert isinstance(child, subprocess.Popen)
    assert child.communicate()[0]


def test_what_a_test_has_changed_since_the_run_began_starts_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_CTYPE", "C")

    assert not warm.heeds(os.environ)
    assert warm.heeds(ENV)


def test_an_option_that_a_copy_would_not_heed_is_refused() -> None:
    with pytest.raises(TypeError, match="a copy heeds no start_new_session"):
        warm.popen("tests.telling", ["0"], start_new_session=True)


def test_a_copy_outlives_who_made_it_and_its_makers_end_is_told() -> None:
    maker = warm.Warm()
    request = {"module": "tests.telling", "arguments": ["waits"], "env": ENV, "cwd": str(warm.ROOT)}
    with Path(os.devnull).open("r+") as null:
        child = warm.Copy(maker.start(request, [null.fileno()] * 3), {})
    maker.process.kill()
    maker.process.wait(10)

    assert child.poll() is None
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    with pytest.raises(OSError, match="pipe"):
        until(lambda: maker.start(request, []), 10)
