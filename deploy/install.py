"""Installs onecard into `.venv`, once: `python3 deploy/install.py serve|install|test|gpu`.

serve: the server and the GGUF engine. install: both engines. test: everything that `make check` needs.
gpu: what `bench/gpu.sh` needs, over the packages that this Python has, because PyTorch is not installed.
Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
EXTRAS = {"serve": "gguf", "install": "quantize", "test": "test", "gpu": "gguf,gpu"}
PROCESSOR = Path("/proc/cpuinfo")
AMX_TILES = Path(__file__).resolve().parent / "amx_tiles.h"
SUPERSETS = {"serve": ["install", "test", "gpu"], "install": ["test"], "test": [], "gpu": ["test"]}
_COMPILED = "compiled once per machine (7 minutes on 2 cores)"
_NINJA = re.compile(r"\[(\d+)/(\d+)\]")
_PIP = re.compile(r"\s*(Collecting|Downloading|Installing collected packages:|Building wheel for) ?(\S+)")


class InstallError(Exception):
    """Why the installation stopped, and what to do about it."""


@dataclass(frozen=True)
class Build:
    """How llama.cpp is compiled."""

    name: str
    """`cpu`, `cuda-sm89`, or `custom-<hash>` for the user's own CMAKE_ARGS; with `-amx` behind it see `amx_tiles.h`."""
    cmake_args: str | None
    cxx_flags: str = ""

    @property
    def plain(self) -> bool:
        """Compiled as it comes, so that pip's own cache may hold it."""
        return self.cmake_args is None and not self.cxx_flags


def say(text: str) -> None:
    """One line of what happens now."""
    print(f"onecard: {text}", flush=True)


def chosen_build() -> Build:
    """What is compiled for this machine's card and processor."""
    build = build_for_card()
    if not PROCESSOR.is_file() or "amx_tile" not in PROCESSOR.read_text():
        return build
    return replace(build, name=f"{build.name}-amx", cxx_flags=f"-include {shlex.quote(str(AMX_TILES))}")


def build_for_card() -> Build:
    """The user's CMAKE_ARGS, else CUDA for the card that is there, else the CPU."""
    if args := os.environ.get("CMAKE_ARGS"):
        return Build(f"custom-{hashlib.sha256(args.encode()).hexdigest()[:8]}", args)
    capability = card_capability()
    if capability is None:
        return Build("cpu", None)
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        say("an NVIDIA card but no nvcc: llama.cpp is built for the CPU. hint: install the CUDA toolkit, delete .venv")
        return Build("cpu", None)
    sm = capability.replace(".", "")
    return Build(f"cuda-sm{sm}", f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={sm} -DCMAKE_CUDA_COMPILER={nvcc}")


def card_capability() -> str | None:
    """Compute capability of the first NVIDIA card (`8.9`); None where the driver lists none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = answer.stdout.strip().splitlines()[:1]
    return (
        first[0].strip() if answer.returncode == 0 and first and re.fullmatch(r"\d+\.\d+", first[0].strip()) else None
    )


def fingerprint(variant: str, build: Build) -> str:
    """Changes whenever an installation of this variant would come out differently."""
    parts = [Path(__file__), ROOT / "pyproject.toml", CONSTRAINTS]
    digest = hashlib.sha256(f"{variant} {build.name} {sys.version_info[:2]}".encode())
    for part in parts:
        digest.update(part.read_bytes())
    return digest.hexdigest()


def stamp(variant: str) -> Path:
    """The file that says this variant is installed."""
    return VENV / f".onecard-{variant}"


def is_installed(variant: str, build: Build) -> bool:
    """Whether the variant, or one that holds it, is there and up to date."""
    return any(
        stamp(name).is_file() and stamp(name).read_text() == fingerprint(name, build)
        for name in (variant, *SUPERSETS[variant])
    )


def make_venv(*, over_machine: bool = False) -> None:
    """An empty `.venv`, unless there is one; `over_machine`: one that sees this Python's packages, pip among them."""
    if PYTHON.exists():
        return
    if importlib.util.find_spec("pip" if over_machine else "ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InstallError(f"this Python cannot make a venv with pip. hint: apt install python{version}-venv")
    say(f"making .venv with Python {sys.version.split()[0]}")
    flags = ["--system-site-packages", "--without-pip"] if over_machine else []
    command = [sys.executable, "-m", "venv", *flags, str(VENV)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise InstallError(f"python -m venv failed: {(answer.stdout + answer.stderr).strip()[-500:]}")
    if over_machine and sys.prefix != sys.base_prefix:  # this Python is a venv itself, which venvs do not see through
        ask = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        (Path(own) / "machine.pth").write_text(sysconfig.get_path("purelib") + "\n")


def pip(*args: str, constrained: bool = False, env: dict[str, str] | None = None, log: str = "pip.log") -> None:
    """Run pip with its output turned into progress; constrained keeps torch to the version that has a CPU build."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *args]
    if constrained:
        command += ["--constraint", str(CONSTRAINTS)]
    progress, log_file = Progress(), VENV / log
    with (
        log_file.open("w") as sink,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                sink.write(line)
                progress.read(line)
        except KeyboardInterrupt:
            process.terminate()
            raise
    progress.end()
    if process.returncode != 0:
        tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-30:])
        raise InstallError(f"pip failed; the end of {log_file.relative_to(ROOT)}:\n{tail}")


def llama_requirement() -> str:
    """`llama-cpp-python==X` as pyproject.toml pins it."""
    import tomllib  # here, so that an older Python reaches the sentence in main

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra: list[str] = project["optional-dependencies"]["gguf"]
    return next(line for line in extra if line.startswith("llama-cpp-python"))


def install_llama(build: Build) -> None:
    """llama-cpp-python in this build: from this user's cache, else compiled."""
    requirement = llama_requirement()
    marker = VENV / ".onecard-llama"
    wanted = f"{requirement} {build.name}"
    if marker.is_file() and marker.read_text() == wanted:
        return
    if shutil.which(os.environ.get("CC", "gcc")) is None:
        raise InstallError("no C compiler, which llama.cpp needs. hint: apt install gcc g++ make")
    if build.plain:
        say(f"llama.cpp for {build.name}: from pip's cache, else {_COMPILED}")
        pip("install", "--verbose", requirement, log="llama-build.log")
    else:
        wheel = cached_wheel(requirement, build)
        pip("install", "--force-reinstall", "--no-deps", str(wheel))
        pip("install", str(wheel))
    marker.write_text(wanted)


def cached_wheel(requirement: str, build: Build) -> Path:
    """The wheel of a build that is not plain, compiled where this user has none yet.

    pip's own cache knows nothing of such flags: it would hand out a CPU wheel, or keep this one for CPU machines.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "onecard" / "wheels" / build.name
    pattern = f"llama_cpp_python-{requirement.partition('==')[2]}-*.whl"
    if list(folder.glob(pattern)):
        say(f"llama.cpp for {build.name}: from {folder}")
    else:
        say(f"llama.cpp for {build.name}: {_COMPILED}")
        compiled = ["--no-cache-dir", "--no-deps", "--no-binary", "llama-cpp-python", "--wheel-dir", str(folder)]
        flags = f"{os.environ.get('CXXFLAGS', '')} {build.cxx_flags}".strip()
        env = {"CMAKE_ARGS": build.cmake_args or "", "CXXFLAGS": flags}
        pip("wheel", "--verbose", *compiled, requirement, env=env, log="llama-build.log")
    return next(folder.glob(pattern))


class Progress:
    """What pip is at: one moving line on a terminal, a line every 20 s elsewhere."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._moving = sys.stdout.isatty()
        self._shown = False

    def read(self, line: str) -> None:
        """Take a line of pip's output."""
        if match := _NINJA.search(line):
            self._show(f"compiling llama.cpp {match[1]}/{match[2]}")
        elif match := _PIP.match(line):
            self._show(f"{match[1].lower()} {match[2][:60]}")

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if not self._moving and now - self._last < 20:
            return
        self._last, self._shown = now, True
        minutes, seconds = divmod(int(now - self._start), 60)
        line = f"onecard: {text} ({minutes}:{seconds:02} so far)"
        print(f"\r{line}\033[K" if self._moving else line, end="" if self._moving else "\n", flush=True)

    def end(self) -> None:
        """Wipe the moving line."""
        if self._moving and self._shown:
            print("\r\033[K", end="", flush=True)


def install(variant: str) -> None:
    """Bring `.venv` to the variant; nothing happens where it is there already."""
    build = chosen_build()
    if is_installed(variant, build):
        return
    started = time.monotonic()
    make_venv(over_machine=variant == "gpu")
    install_llama(build)
    say(f"installing onecard[{EXTRAS[variant]}]")
    pip("install", "--editable", f".[{EXTRAS[variant]}]", constrained=card_capability() is None)
    stamp(variant).write_text(fingerprint(variant, build))
    say(f"installed in {time.monotonic() - started:.0f} s")


def main() -> int:
    """The command line; exit code 1 with a sentence on failure."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the whole point is to say so on an older Python
        print(f"onecard needs Python 3.11 or newer, this is {sys.version.split()[0]}. hint: make PYTHON=python3.11 ...")
        return 1
    variant = sys.argv[1] if len(sys.argv) == 2 else ""
    if variant not in EXTRAS:
        print(f"usage: install.py {'|'.join(EXTRAS)}")
        return 2
    try:
        install(variant)
    except InstallError as problem:
        print(f"onecard: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
