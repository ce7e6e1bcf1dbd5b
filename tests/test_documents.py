"""What the documents name is there: rooms, paths, targets of make, commands and their flags."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from server.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/clients.md")]
DOCUMENTS += [ROOT / "docs" / "quantize.md", ROOT / "demo" / "README.md"]
OUTSIDE = {"config.yaml", "extra-openai-models.yaml", "onecard.toml", "org/repo"}
"""Files of users and of other programs."""
NAMED_ONE_BY_ONE = {
    "server": ("", "door", "memory", "pool", "scheduling", "settings"),
    "backends": ("", "bnb", "generation", "gguf", "messages", "prefix"),
}
"""Folders whose files the map names each; in the others a file is one surface, family or command like the next one."""


def the_map() -> str:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    return text[text.index("## Map") : text.index("## State machines")]


def rooms_on_the_map() -> set[str]:
    """What stands at the beginning of a line or in backticks."""
    first = (re.split(r"\s{2,}", line.strip())[0] for line in the_map().splitlines() if re.match(r" {0,2}\w", line))
    words = {word.rstrip("/") for column in first for word in re.split(r", ", column)}
    return words | set(re.findall(r"`(\w+)`", the_map()))


def code_of(document: Path) -> list[str]:
    """Blocks and inline code, line by line."""
    text = document.read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for part in [*blocks, *inline] for line in part.splitlines()]


def test_every_room_is_on_the_map():
    named = rooms_on_the_map()
    folders = [ROOT / top / below for top, rooms in NAMED_ONE_BY_ONE.items() for below in rooms]
    files = {file.relative_to(ROOT) for folder in folders for file in folder.glob("*.py")}
    missing = {str(file) for file in files if file.stem not in {*named, "__init__"}}
    packages = {file.parent for top in ("server", "backends", "quantize") for file in (ROOT / top).rglob("__init__.py")}
    missing |= {str(package.relative_to(ROOT)) for package in packages if package.name not in the_map()}
    assert missing == set()


def test_every_path_that_a_document_names_is_there():
    wrong = set()
    for document in DOCUMENTS:
        text = document.read_text()
        paths = re.findall(r"\]\(([^)#:]+)[)#]", text)
        paths += [
            word for code in code_of(document) for word in re.findall(r"^[\w.][\w./-]*\.(?:py|md|sh|toml|yaml)$", code)
        ]
        paths += [
            code for code in code_of(document) if re.fullmatch(r"(?:tests|backends|server|docs|deploy)/[\w./]+", code)
        ]
        wrong |= {
            f"{document.name}: {path}"
            for path in paths
            if path not in OUTSIDE and not any((place / path).exists() for place in (ROOT, document.parent))
        }
    assert wrong == set()


def test_every_target_of_make_that_a_document_names_is_there():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    named = {
        word for document in DOCUMENTS for code in code_of(document) for word in re.findall(r"^make ([\w-]+)", code)
    }
    assert len(named) > 5
    assert named <= targets


def options_of(command) -> set[str]:
    return {spelling for parameter in command.params for spelling in [*parameter.opts, *parameter.secondary_opts]}


def test_every_command_and_flag_that_a_document_shows_is_there():
    commands = typer.main.get_command(app).commands
    shown, wrong = 0, set()
    for document in DOCUMENTS:
        for code in code_of(document):
            for words in re.findall(r"(?:^|[\s$/])onecard ((?:[a-z]\S*|config [a-z]+)(?: [^`#;]*)?)", code):
                name, *rest = words.split()
                if name.rstrip(",") not in commands and not re.fullmatch(r"[a-z]+(?:\|[a-z]+)+", name):
                    wrong.add(f"{document.name}: onecard {words}")
                for one in name.split("|"):
                    if (command := commands.get(one)) is None:
                        continue
                    if hasattr(command, "commands"):
                        command = command.commands[rest[0]]
                    flags = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
                    wrong |= {f"{document.name}: {words}: {flag}" for flag in flags - options_of(command)}
                    shown += 1
    assert shown > 20
    assert wrong == set()


def test_every_flag_that_the_readme_names_alone_is_one_of_a_command():
    commands = typer.main.get_command(app).commands.values()
    there = set().union(
        *(options_of(one) for command in commands for one in getattr(command, "commands", {"": command}).values())
    )
    named = {code.split()[0] for code in code_of(ROOT / "README.md") if code.startswith("--")} - {"--build-arg"}
    assert len(named) >= 5
    assert named <= there


def test_the_flags_of_quantize_are_those_of_its_page():
    page = {flag for code in code_of(ROOT / "docs/quantize.md") for flag in re.findall(r"(?<![\w-])--[a-z-]+", code)}
    assert page <= options_of(typer.main.get_command(app).commands["quantize"])


@pytest.mark.engine
def test_every_measurement_that_a_document_names_is_one_of_bench():
    named = {
        word
        for document in DOCUMENTS
        for code in code_of(document)
        for word in re.findall(r"^(?:python -m )?bench ([a-z-]+)$", code)
    }
    told = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert len(named) > 5
    assert {word for word in named if not re.search(rf"^    {word}\b", told.stdout, re.MULTILINE)} == set()
