"""What may import what, read from the sources; and that the server stays light, seen in a child process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUR = {"server", "backends", "quantize", "demo", "bench", "tests"}
HEAVY = {
    "llama_cpp",
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "diffusers",
    "numpy",
    "jinja2",
    "gguf",
    "llguidance",
    "av",
    "onnxruntime",
    "hibari",
    "peft",
}
SERVER_MAY_USE = {
    "backends.messages",
    "backends.prefix.eviction_score",
    "backends.files.model_files",
    "backends.files.adapters",
    "backends.formats.known",
    "backends.formats.pieces",
    "backends.formats.splitter",
    "backends.registry",
    "backends.border.child",
    "backends.machine.card",
    "backends.machine.kernel",
    "backends.border.template_process",
    "backends.border.worker",
    "backends.border.dry",
    "backends.border.rates",
    "backends.speed",
    "backends.machine.host",
    "backends.backend",
    "backends.files.foreign",
    "backends.kinds",
    "backends.kv_types",
    "backends.options",
    "backends.plan",
    "backends.machine.crash_reason",
    "backends.weight",
    "backends.workload",
    "backends.gguf.parts",
    "backends.files.sampling_defaults",
    "backends.messages.training",
    "backends.training.examples",
    "backends.training.price",
}
MAY_IMPORT = {
    "server": {"server", *SERVER_MAY_USE},
    "backends": {"backends"},
    "demo": {"demo"},
    "quantize": {
        "quantize",
        "backends.backend",
        "backends.bnb.adapters",
        "backends.bnb.header",
        "backends.bnb.stored",
        "backends.files.adapters",
        "backends.files.foreign",
        "backends.files.lora_folder",
        "backends.files.lora_copies",
        "backends.files.lora_values",
        "backends.files.tensors",
        "backends.files.tensor_table",
        "backends.gguf.adapters",
        "backends.gguf.header",
        "backends.gguf.info",
        "backends.gguf.servable",
        "backends.gguf.tensor_types",
        "backends.messages",
        "backends.registry",
        "backends.files.model_files",
        "backends.files.sampling_defaults",
        "backends.files.scratch",
        "backends.files.whole",
    },
}
KIND_ROUTES = ("route.py", "tool.py")
"""Of an engine's folder: its route with what its bodies hold, and its tool of `/v1/responses`, which only the server
imports, by their names."""
COMMANDS = {"server/cli/quantize.py": "quantize"}
"""A command whose work is another package; it is imported when the command runs."""
LOW_LEVEL = {
    f"backends/gguf/{name}.py"
    for name in (
        "context",
        "context_params",
        "embedding_pass",
        "ggml_calls",
        "library_log",
        "model",
        "mtp",
        "pooled",
        "sampling",
        "tower",
    )
}
BASELINE = "backends/gguf/bare.py"
"""The loop that the engine is measured by shares nothing with it, so it calls llama.cpp itself."""


SERVER_ROOMS = (
    "errors", "error_bodies", "accounts", "asker", "history", "stored_images", "settings", "exposition",
    "scheduling", "metric_table", "metrics", "memory", "traces", "pool",
    "files", "tuning", "output", "schemas", "batches", "door", "pulling", "reload", "routes", "app",
    "bench", "hub", "cluster", "cli",
)  # fmt: skip
"""Folders and files of `server`, the lowest first: each imports only those before it, type annotations included."""
ENGINES = tuple(sorted(file.parent.name for file in (ROOT / "backends").glob("*/backend.py")))
"""Folders of `backends` that hold one kind of model. They know nothing of each other, and nothing knows of them."""
BACKENDS_FOLDERS = (
    "messages", "machine", "files", "prefix", "formats",
    "constraints", "prompts", "border", "generation", "vectors", "pytorch", *ENGINES, "training",
)  # fmt: skip
"""The same of the folders of `backends`; its single files stand anywhere between them, in no circle."""
KNOWN_OUTSIDE: Mapping[str, set[str]] = {
    "backends/registry.py": {f"backends.{name}.backend" for name in ENGINES},
    "server/settings/references.py": {"backends.gguf.parts"},
    "backends/training/base.py": {
        "backends.bnb.body",
        "backends.bnb.folder",
        "backends.bnb.header",
        "backends.bnb.vocabulary",
        "backends.bnb.weights",
    },
    "backends/training/encoding.py": {"backends.bnb.vocabulary"},
    "backends/training/job.py": {"backends.bnb.loading"},
    "backends/training/price.py": {"backends.bnb.arithmetic", "backends.bnb.header"},
}
"""Who imports what of an engine's folder from outside: the registry, what finds files in the Hugging Face cache, and
training, which loads and encodes as the engine of folders does.
"""


def modules(package: str) -> list[Path]:
    return sorted(file for file in (ROOT / package).rglob("*.py") if "__pycache__" not in file.parts)


def imported(file: Path) -> set[str]:
    """Every module a file imports, wherever in it; `from a import b` counts as `a.b` where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            found |= {_module(node.module, alias.name) for alias in node.names}
    return found


def _module(parent: str, name: str) -> str:
    path = ROOT.joinpath(*parent.split("."), name)
    return f"{parent}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else parent


def allowed(module: str, prefixes: set[str]) -> bool:
    top = module.split(".", maxsplit=1)[0]
    return top not in OUR or module in prefixes or any(module.startswith(f"{p}.") for p in prefixes if p in OUR)


def is_kind_route(file: Path) -> bool:
    return file.name in KIND_ROUTES and file.parent.name in ENGINES


def rooms(package: str) -> dict[str, dict[str, str]]:
    """Room -> the rooms of the same package that it imports, each with one of the imports."""
    found: dict[str, dict[str, str]] = {}
    for file in modules(package):
        room = _room(file.relative_to(ROOT).with_suffix("").parts)
        for module in imported(file):
            other = _room(module.split("."))
            if module.startswith(f"{package}.") and other != room:
                found.setdefault(room, {})[other] = f"{file.relative_to(ROOT)}: {module}"
    return found


def _room(parts: Sequence[str]) -> str:
    return parts[1] if len(parts) > 1 else ""


def in_circles(imports: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The rooms that reach themselves."""

    def reached(room: str) -> set[str]:
        seen: set[str] = set()
        todo = [room]
        while todo:
            new = set(imports.get(todo.pop(), ())) - seen
            seen |= new
            todo.extend(new)
        return seen

    return {room for room in imports if room in reached(room)}


@pytest.mark.parametrize("package", ["server", "backends"])
def test_no_rooms_import_each_other_in_a_circle(package):
    assert in_circles(rooms(package)) == set()


def test_a_circle_would_be_seen():
    assert in_circles({"a": {"b": ""}, "b": {"c": ""}, "c": {"a": ""}, "d": {"a": ""}}) == {"a", "b", "c"}


@pytest.mark.parametrize(("package", "order"), [("server", SERVER_ROOMS), ("backends", BACKENDS_FOLDERS)])
def test_each_room_imports_only_rooms_below_it(package, order):
    folders = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    found = rooms(package)
    named = set(order)
    assert folders <= named, "a new room has no place in the order"
    if package == "server":
        assert set(found) <= {*named, "__init__"}, "a new room has no place in the order"
    wrong = [
        why
        for room, others in found.items()
        for other, why in others.items()
        if room in named and other in named and order.index(other) > order.index(room)
    ]
    assert wrong == []
    assert [why for room in ENGINES for other, why in found.get(room, {}).items() if other in ENGINES] == []


def outside_engines() -> list[Path]:
    inside = {ROOT / "backends" / name for name in ENGINES}
    return [file for package in ("server", "backends") for file in modules(package) if not inside & {*file.parents}]


def test_there_are_engines():
    assert {"bnb", "gguf"} <= {*ENGINES}


def test_nothing_of_an_engine_is_imported_outside_its_folder():
    known = {
        str(file.relative_to(ROOT)): found
        for file in outside_engines()
        if (found := {name for name in imported(file) if name.split(".")[:2] in [["backends", one] for one in ENGINES]})
    }
    assert known == KNOWN_OUTSIDE


def test_no_backend_is_told_by_its_name():
    """A name of a backend is no word of the code outside its folder: what differs is asked of its object."""
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in outside_engines()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in ENGINES
    ]
    assert wrong == []


def test_no_header_is_told_by_its_class():
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in outside_engines()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call | ast.MatchClass) and "Header" in _told_by(node)
    ]
    assert wrong == []


def _told_by(node: ast.AST) -> str:
    """The classes that an `isinstance` or a `case` tells apart by, as they are written; empty for all else."""
    if isinstance(node, ast.MatchClass):
        return ast.unparse(node.cls)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        return ast.unparse(node.args[1])
    return ""


def test_it_would_be_seen_how_headers_are_told_apart():
    code = "isinstance(header, GgufHeader | int)\nmatch header:\n    case FolderHeader(): pass"
    assert [told for node in ast.walk(ast.parse(code)) if "Header" in (told := _told_by(node))]
    assert sum("Header" in _told_by(node) for node in ast.walk(ast.parse(code))) == 2


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_it_may(package):
    wrong = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in modules(package)
        for module in imported(file)
        if not allowed(module, MAY_IMPORT[package] | ({"server"} if is_kind_route(file) else set()))
        and module.split(".", maxsplit=1)[0] != COMMANDS.get(str(file.relative_to(ROOT)))
    }
    assert wrong == set()


def test_no_other_file_imports_the_route_of_a_kind():
    routes = {f"backends.{one}.{file.removesuffix('.py')}" for one in ENGINES for file in KIND_ROUTES}
    files = (file for package in ("server", "backends") for file in modules(package) if not is_kind_route(file))
    assert [str(file) for file in files if routes & imported(file)] == []


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_what_a_package_may_import_it_does(package):
    found = set().union(*(imported(file) for file in modules(package)))
    idle = {name for name in MAY_IMPORT[package] if not any(f"{one}.".startswith(f"{name}.") for one in found)}
    assert idle <= {package}


def test_the_server_names_no_inference_library():
    wrong = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in modules("server")
        for module in imported(file)
        if module.split(".", maxsplit=1)[0] in HEAVY
    }
    assert wrong == set()


def test_only_a_few_files_touch_llama_cpp():
    users = {
        str(file.relative_to(ROOT))
        for package in ("server", "backends")
        for file in modules(package)
        if any(module.split(".", maxsplit=1)[0] == "llama_cpp" for module in imported(file))
    }
    assert users <= {*LOW_LEVEL, BASELINE}


def test_what_the_server_uses_of_the_backends_is_light_itself():
    code = f"import sys; import {', '.join(sorted(SERVER_MAY_USE))}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert HEAVY & set(loaded.stdout.split()) == set()


def test_importing_the_application_loads_no_heavy_library():
    code = """
import json, re, sys, time
began = time.process_time()
import server.app
seconds = time.process_time() - began
peak_kib = int(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])
print(json.dumps({"modules": sorted(sys.modules), "seconds": seconds, "peak_kib": peak_kib}))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    report = json.loads(answer.stdout)
    assert HEAVY & set(report["modules"]) == set()
    assert report["peak_kib"] < 120 * 1024
    assert report["seconds"] < 1.5


def test_the_help_of_the_command_line_imports_next_to_nothing():
    code = "import sys; import server.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {*HEAVY, "fastapi", "uvicorn", "pydantic", "httpx2"} & set(loaded.stdout.split()) == set()


OPENER = "backends/files/model_files.py"
OPENS = {
    "open",
    "read_text",
    "read_bytes",
    "fromfile",
    "memmap",
    "load_file",
    "safe_open",
    "copyfile",
    "from_pretrained",
}
OPENS_OTHERS: Mapping[str, str] = {
    "server/cli/clusters.py": "its own state file, and the kernel's word on a process",
    "server/cli/cluster_end.py": "a note of our own",
    "backends/bnb/encoding.py": "safetensors' own reader, behind a check of the file",
    "backends/bnb/body.py": "transformers' reader, behind a check of the folder",
    "backends/bnb/processor.py": "transformers' reader, behind a check of the folder",
    "backends/pytorch/measure.py": "/proc",
    "backends/pytorch/shortage.py": "/proc",
    "backends/bnb/weights.py": "transformers' reader, behind a check of the folder",
    "backends/diffusion/loading.py": "transformers' reader of tokenizers, behind a check of the folder",
    "backends/diffusion/reading.py": "diffusers' and transformers' readers, behind a check of the folder",
    "backends/files/scratch.py": "locks of our own",
    "backends/files/whole.py": "what was just written",
    "backends/files/pictures.py": "Pillow over bytes that came with a request",
    "server/cli/train_file.py": "what a person names on the command line, checked before",
    "server/tuning/preparing.py": "uploads of the data folder",
    "backends/training/learner.py": "checkpoints in a folder of our own",
    "backends/training/result.py": "copies of a folder that was checked",
    "backends/files/recordings.py": "PyAV over bytes that were read",
    "backends/generation/residency.py": "saved states, by the store's own method",
    "backends/gguf/loading.py": "/proc",
    "backends/gguf/threads.py": "/proc",
    "backends/machine/kernel.py": "/proc",
    "backends/speech/loading.py": "transformers' reader, behind a check of the folder",
    "backends/border/load_limit.py": "/proc",
    "backends/voice/encoding.py": "PyAV over what it writes",
    "backends/voice/speaker.py": "a file of hibari's package",
    "backends/prompts/renderer.py": "/dev/null",
    "backends/prefix/entry_files.py": "saved states in a folder of our own",
    "backends/prefix/store.py": "saved states, by the store's own method",
    "quantize/bnb_main.py": "transformers' reader, in a child, behind a check of the folder",
    "quantize/files.py": "copies of a folder that was checked",
    "quantize/hf/safetensors_writer.py": "what it writes",
    "quantize/scores/folder_main.py": "transformers' reader, in a child, behind a check of the folder",
    "server/batches/runner.py": "uploads in a folder of our own",
    "server/files/folder.py": "locks of our own",
    "server/files/store.py": "what it writes, in a folder of our own",
    "server/cli/batch.py": "requests that a person names",
    "server/cli/client.py": "what it writes",
    "server/cli/early.py": "/dev/null",
    "server/cli/rm.py": "/proc",
    "server/cli/completing.py": "the configuration",
    "server/cli/configuration.py": "the example of the package",
    "server/cli/chat/files.py": "what a person sends with a question",
    "server/cli/chat/history.py": "a history of our own",
    "server/cli/connect/files.py": "configurations of other programs",
    "server/cli/service/command.py": "a unit of our own",
    "server/cli/service/unit.py": "a unit of our own",
    "server/memory/gpu.py": "/proc",
    "server/cli/output.py": "/dev/null",
    "server/cli/transcribe.py": "the user's own recording",
    "server/own_folder.py": "locks of our own",
    "backends/machine/host.py": "/proc and /sys",
    "server/memory/learned.py": "what was learned, a file of our own",
    "server/hub/download.py": "what it just wrote",
    "server/hub/standin.py": "what it just wrote",
    "server/settings/config_source.py": "the operator's configuration",
    "server/settings/key_file.py": "the operator's keys",
}
"""Files of the operator, of the kernel and of our own; libraries that open a model's files once they are checked."""


def test_files_of_models_are_opened_by_one_opener():
    opening = {
        str(file.relative_to(ROOT)): f"{name} in line {node.lineno}"
        for package in ("server", "backends", "quantize")
        for file in modules(package)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and (name := _called(node.func)) in OPENS
    }
    opening.pop(OPENER)
    assert {file: what for file, what in opening.items() if file not in OPENS_OTHERS} == {}
    assert set(OPENS_OTHERS) - set(opening) == set(), "no longer opens anything"


def _called(function: ast.expr) -> str | None:
    """The last name of what is called; the opener's own functions are not meant."""
    if isinstance(function, ast.Attribute):
        ours = isinstance(function.value, ast.Name) and function.value.id == "model_files"
        return None if ours else function.attr
    return function.id if isinstance(function, ast.Name) else None


def test_a_room_stays_small():
    too_long = {
        f"{file.relative_to(ROOT)}: {count} lines"
        for package in ("server", "backends", "quantize")
        for file in modules(package)
        if (count := len(file.read_text().splitlines())) > 500
    }
    assert too_long == set()


def test_every_package_is_packaged_and_nothing_else():
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    ours = {"server", "backends", "demo", "quantize"}
    there = {file.parent.relative_to(ROOT) for file in ROOT.glob("[a-z]*/**/__init__.py")}
    packed = {".".join(room.parts) for room in there if any(fnmatch(".".join(room.parts), one) for one in included)}
    assert packed == {".".join(room.parts) for room in there if room.parts[0] in ours}
    assert {file.parent.relative_to(ROOT) for top in ours for file in modules(top)} <= there
