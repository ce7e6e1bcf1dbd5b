"""Functions and classes that nothing names any more, and functions in functions that their own one does not name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("server", "backends", "quantize", "demo", "bench", "deploy", "docs")
KINDS = {"function", "method", "property", "class"}
CALLED_BY_OTHERS: Mapping[str, str] = {
    "capture_signals": "uvicorn",
    "load_history_strings": "prompt_toolkit",
    "store_string": "prompt_toolkit",
    "send_400_response": "uvicorn",
    "_should_upgrade": "uvicorn",
    "_send_with_timeout": "sse-starlette",
    "_ping": "sse-starlette",
    "_get_arguments_from_pretrained": "transformers",
    "check_argument_for_proper_class": "transformers",
    "check_health": "Ray Serve",
    "record_autoscaling_stats": "Ray Serve",
}
"""Names that a library looks up on what we give it, and which library."""
DECORATORS = [
    "@keys.add",
    "@router.*",
    "@metrics_router.*",
    "@app.*",
    "@config_app.*",
    "@cluster_app.*",
    "@model_validator",
    "@field_validator",
]


def sources() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_nothing_is_left_that_nothing_names():
    reader = Vulture(ignore_names=["__*__"], ignore_decorators=DECORATORS)
    reader.scavenge([str(ROOT / package) for package in (*PACKAGES, "tests")])
    unused = {
        item.name: f"{Path(item.filename).relative_to(ROOT)}:{item.first_lineno}"
        for item in reader.get_unused_code(min_confidence=60)
        if item.typ in KINDS and not Path(item.filename).is_relative_to(ROOT / "tests")
    }
    assert {name: place for name, place in unused.items() if name not in CALLED_BY_OTHERS} == {}
    assert set(CALLED_BY_OTHERS) - set(unused) == set(), "no longer there, or named by now"


def unnamed(function: ast.AST) -> Iterator[str]:
    """Functions and classes in a function that no other line of it names: a linter that goes by name sees namesakes."""
    inner = [node for node in ast.walk(function) if node is not function]
    named = {node.id for node in inner if isinstance(node, ast.Name)}
    for node in inner:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.decorator_list:
            inside_a_class = any(isinstance(other, ast.ClassDef) and node in other.body for other in inner)
            if node.name not in named and not inside_a_class:
                yield node.name


def test_no_function_in_a_function_is_left_over():
    found = {
        f"{file.relative_to(ROOT)}:{node.lineno}": left
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (left := list(unnamed(node)))
    }
    assert found == {}


def test_a_namesake_elsewhere_hides_no_function():
    source = "def route():\n    def new_whole():\n        return 1\n    return Plan(new_whole=lambda: 2)"
    assert list(unnamed(ast.parse(source).body[0])) == ["new_whole"]
