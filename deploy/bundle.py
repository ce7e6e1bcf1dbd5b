"""Gathers what a bare CUDA machine without a network needs: `python3 deploy/bundle.py` fills `dist/gpu-bundle`.

wheels/     every dependency for that machine's Python (`--python`, 3.12 unless told otherwise; Linux on x86-64), and
            llama-cpp-python as a source without what a CUDA build leaves unread
onecard.tar.gz   the project as committed
MANIFEST.json    what is in it, with sizes

PyTorch is not in it: the bnb backend uses the one that the machine has. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "dist" / "gpu-bundle"
MOST_SOURCE_BYTES = 40_000_000
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
BUILD_TOOLS = ["cmake>=3.21", "ninja", "scikit-build-core>=0.9.2", "setuptools>=77"]
LLAMA_NEEDS = ["diskcache>=5.6.1", "typing-extensions>=4.5"]
WITHOUT_NEEDS = ["bitsandbytes", "accelerate"]
"""Their dependencies are PyTorch's and those of transformers."""
UNREAD = re.compile(
    r"(\.git|docker|docs|examples|scripts|tests)/"
    r"|vendor/llama\.cpp/(\.|app/|benches/|ci/|common/|conversion/|docs/|examples/|gguf-py/|grammars/|media/|models/"
    r"|pocs/|requirements|scripts/(?!.*\.cmake$)|skills/|tests/|tools/|vendor/cpp-httplib/)"
    r"|vendor/llama\.cpp/ggml/src/ggml-(cann|et|hexagon|kompute|metal|opencl|openvino|rpc|sycl|virtgpu|vulkan|webgpu"
    r"|zdnn|zendnn)/"
)
"""Paths of the source that a CPU or CUDA build of the library does not read, below its own folder."""
PATCHES = (
    ('option(LLAVA_BUILD "Build llava shared library and install alongside python package" ON)', "ON)", "OFF)"),
    ('set(LLAMA_BUILD_COMMON ON CACHE BOOL "Build llama.cpp common library" FORCE)', "COMMON ON", "COMMON OFF"),
)
"""Lines of its CMakeLists.txt, and what is turned off in them: the parts whose sources are left out."""


class BundleError(Exception):
    """Why there is no bundle."""


def requirement_name(requirement: str) -> str:
    """`numpy>=2` is about numpy."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower()


def requirements(project: dict[str, object]) -> list[str]:
    """What to fetch with all its dependencies, from pyproject.toml's `project` table."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [*_strings(project["dependencies"]), *_strings(extras["gpu"]), *_strings(extras["gguf"])]
    wanted += [*_strings(extras["bnb"]), *BUILD_TOOLS, *LLAMA_NEEDS]
    ours = {"onecard", "llama-cpp-python", "torch", *WITHOUT_NEEDS}
    return sorted({requirement for requirement in wanted if requirement_name(requirement) not in ours})


def without_dependencies(project: dict[str, object]) -> list[str]:
    """What to fetch alone."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    return [requirement for requirement in _strings(extras["bnb"]) if requirement_name(requirement) in WITHOUT_NEEDS]


def _strings(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(item) for item in value]


def pip(*arguments: str) -> None:
    """Run pip. Raises BundleError with its last lines."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BundleError(f"pip {arguments[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def fetch_wheels(target: Path, wanted: list[str], *, python: str, dependencies: bool) -> None:
    """Wheels for another Python than this one."""
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    flags = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    pip("download", "--quiet", "--dest", str(target), *flags, *([] if dependencies else ["--no-deps"]), *wanted)


def fetch_source(target: Path, requirement: str) -> Path:
    """The source as published, slimmed; its path."""
    with tempfile.TemporaryDirectory() as folder:
        only_source = ["--no-deps", "--no-binary", "llama-cpp-python"]
        pip("download", "--quiet", "--dest", folder, *only_source, requirement)
        (published,) = Path(folder).glob("llama_cpp_python-*.tar.gz")
        return slim(published, target / published.name)


def slim(source: Path, target: Path) -> Path:
    """Write the source again without what the build leaves unread. Raises BundleError when it is no longer as known."""
    patched = 0
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for member in old:
            path = member.name.partition("/")[2]
            if UNREAD.match(path) or not (member.isfile() or member.isdir()):
                continue
            content = old.extractfile(member) if member.isfile() else None
            if path == "CMakeLists.txt" and content is not None:
                text, patched = patch(content.read().decode())
                with tempfile.SpooledTemporaryFile() as changed:
                    member.size = changed.write(text.encode())
                    changed.seek(0)
                    new.addfile(member, changed)
                continue
            new.addfile(member, content)
    if patched != len(PATCHES):
        raise BundleError(f"{source.name}: its CMakeLists.txt is not the one this script knows how to slim")
    n_bytes = target.stat().st_size
    if n_bytes >= MOST_SOURCE_BYTES:
        raise BundleError(f"{target.name} still has {n_bytes} bytes, {MOST_SOURCE_BYTES} are the most")
    return target


def patch(text: str) -> tuple[str, int]:
    """The build script with the left-out parts turned off, and how many lines that changed."""
    count = 0
    for line, on, off in PATCHES:
        count += text.count(line) == 1
        text = text.replace(line, line.replace(on, off))
    return text, count


def drop(folder: Path, names: Iterable[str]) -> None:
    """Delete wheels of packages that the machine has itself. Raises BundleError for a name that is not there."""
    for name in names:
        found = [
            file for file in folder.iterdir() if file.name.lower().startswith(name.lower().replace("-", "_") + "-")
        ]
        if not found:
            raise BundleError(f"--without {name}: there is no such wheel")
        for file in found:
            file.unlink()


def archive_project(target: Path) -> None:
    """The committed tree; changes that are not committed stay behind."""
    subprocess.run(
        ["git", "archive", "--format=tar.gz", "--prefix=onecard/", f"--output={target}", "HEAD"], cwd=ROOT, check=True
    )


def manifest(out: Path, python: str) -> dict[str, object]:
    """What the bundle holds."""
    files = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return {"python": python, "platform": "linux x86_64", "total_bytes": sum(files.values()), "files": files}


def bundle(out: Path, *, python: str, without: list[str], project: bool) -> dict[str, object]:
    """Make the bundle from nothing. Raises BundleError."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shutil.rmtree(out, ignore_errors=True)
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    fetch_wheels(wheels, requirements(table), python=python, dependencies=True)
    fetch_wheels(wheels, without_dependencies(table), python=python, dependencies=False)
    drop(wheels, without)
    llama = next(line for line in table["optional-dependencies"]["gguf"] if line.startswith("llama-cpp-python"))
    fetch_source(wheels, llama)
    if project:
        archive_project(out / "onecard.tar.gz")
    told = manifest(out, python)
    (out / "MANIFEST.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bundle.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="Python of the target machine (default 3.12)")
    parser.add_argument("--without", default="", metavar="A,B", help="wheels to leave out: the machine has them")
    parser.add_argument("--no-project", action="store_true", help="leave the project out: it travels by other means")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT.relative_to(ROOT)}")
    options = parser.parse_args()
    without = [name for name in options.without.split(",") if name]
    try:
        told = bundle(options.out, python=options.python, without=without, project=not options.no_project)
    except BundleError as problem:
        print(f"onecard: {problem}", file=sys.stderr)
        return 1
    size = f"{float(str(told['total_bytes'])) / 1e6:.0f} MB"
    print(f"onecard: {options.out}: {size} for Python {options.python} on Linux x86-64")
    unpack = "" if options.no_project else "tar xzf onecard.tar.gz && cd onecard && "
    print(f"onecard: on the machine with the card: {unpack}bash bench/gpu.sh --bundle FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main())
