"""llama-server, llama.cpp's own server: where it is, or how it is built once, and a running one.

It is built of the sources that the installed llama-cpp-python was built of, as they come, so that both servers compute
with the same kernels.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import serving
from bench.model import OUT

START_TIMEOUT_S = 120.0
PACKAGE = "llama-cpp-python"
AMX_TILES = Path(__file__).resolve().parent.parent / "deploy" / "amx_tiles.h"
SWITCHED_OFF = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_APP")
"""What would be downloaded, or is not measured."""


def find(given: Path | None) -> Path:
    """The program: the given one, that of PATH, or one built into `bench/out`. Raises RuntimeError."""
    if given is not None:
        if not os.access(given, os.X_OK):
            raise RuntimeError(f"{given} is no program")
        return given
    if found := shutil.which("llama-server"):
        return Path(found)
    folder = OUT / f"llama-server-{importlib.metadata.version(PACKAGE)}"
    program = folder / "bin" / "llama-server"
    if not program.exists():
        _build(folder)
    return program


def version(program: Path) -> str:
    """What it says of itself, in one line."""
    command = [str(program), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=_with_its_libraries(program))
    lines = [line for line in (said.stderr + said.stdout).splitlines() if line.startswith("version")]
    ours = program.is_relative_to(OUT)
    return f"{lines[0] if lines else 'version unknown'}{f', of {PACKAGE} {_package_version()}' if ours else ''}"


def _with_its_libraries(program: Path) -> dict[str, str]:
    """The environment in which it finds the libraries beside it."""
    return {**os.environ, "LD_LIBRARY_PATH": f"{program.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def _package_version() -> str:
    return importlib.metadata.version(PACKAGE)


def _build(folder: Path) -> None:
    """Compile the one target into the folder; five to eight minutes on two cores. Raises RuntimeError."""
    print(f"building llama-server of {PACKAGE} {_package_version()} (once, minutes)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        sdist = f"{PACKAGE}=={_package_version()}"
        flags = ["--no-deps", "--no-binary", PACKAGE, "--dest", scratch]
        _checked([sys.executable, "-m", "pip", "download", *flags, sdist])
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        source = next(Path(scratch).glob("*/vendor/llama.cpp"))
        env = dict(os.environ)
        if "amx_tile" in Path("/proc/cpuinfo").read_text():
            env["CXXFLAGS"] = f"{env.get('CXXFLAGS', '')} -include {AMX_TILES}"
        options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in SWITCHED_OFF)]
        build = Path(scratch) / "build"
        _checked(["cmake", "-S", str(source), "-B", str(build), *options], env)
        jobs = str(len(os.sched_getaffinity(0)))
        _checked(["cmake", "--build", str(build), "--target", "llama-server", "--parallel", jobs], env)
        _install(build / "bin", folder)


def _install(built: Path, folder: Path) -> None:
    """The program and its libraries; whole or not at all."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "bin").mkdir(parents=True)
    for file in built.iterdir():
        if file.name == "llama-server" or ".so" in file.name:
            shutil.copy2(file, part / "bin" / file.name)
    part.rename(folder)


def _checked(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")


@contextlib.contextmanager
def running(
    program: Path, model: Path, *, context: int, parallel: int, flags: Sequence[str] = ()
) -> Iterator[serving.Server]:
    """Serve one model with `parallel` slots of `context` tokens; all else as it comes. Raises RuntimeError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "--model", str(model), "--ctx-size", str(context * parallel), "--parallel", str(parallel)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    env = _with_its_libraries(program)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            server = serving.Server(f"http://127.0.0.1:{port}", process.pid)
            if not serving.answers(process, server.url, within_s=START_TIMEOUT_S):
                log.seek(0)
                raise RuntimeError(f"llama-server did not become ready; it wrote:\n{log.read()[-4000:]}")
            yield server
        finally:
            serving.end(process, within_s=20)
