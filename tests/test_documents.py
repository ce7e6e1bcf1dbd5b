"""What the documents name is there: paths, targets of make, commands and their flags; and they read as they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from server.cli.app import app
from tests.present import present

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"api.md", "configuration.md", "map.md", "metrics.md"}
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "demo/README.md")]
DOCUMENTS += sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in GENERATED)
OUTSIDE = {"config.yaml", "extra-openai-models.yaml", "onecard.toml", "org/repo", "table.py"}
"""Files of users and of other programs."""


def code_of(document: Path) -> list[str]:
    """Blocks and inline code, line by line."""
    text = document.read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for part in [*blocks, *inline] for line in part.splitlines()]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / script), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)


def test_the_topmost_version_of_the_changelog_is_that_of_the_package():
    topmost = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert topmost is not None
    assert topmost[1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_pages_that_are_made_of_the_code_are_up_to_date():
    told = run("generate.py", "--check")
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_documents_read_as_they_should():
    told = run("prose.py")
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_site_is_built_without_a_dead_link(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path / "site")]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "site" / "index.html").is_file()


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


def test_decisions_have_a_number_each_and_each_page_says_it():
    """A number may be left out: a decision that was dropped takes its own with it."""
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert len({page.name[:3] for page in pages}) == len(pages)
    assert [page.name for page in pages if not page.read_text().startswith(f"# {page.name[:3]} ")] == []


def test_the_ten_changes_name_files_that_have_what_they_say():
    text = (ROOT / "docs/development.md").read_text()
    changes = re.findall(r"^### (\d+)\. .*\n((?:(?!^##).*\n)*)", text, re.MULTILINE)
    assert [int(number) for number, _ in changes] == [*range(1, 11)]
    named = {number: re.findall(r"`([\w./]+\.py)`(?: \(([^)]*)\))?", body) for number, body in changes}
    wrong = [
        f"{number}: {path}: {name}"
        for number, places in named.items()
        for path, names in places
        for name in re.findall(r"`(\w+)`", names)
        if not re.search(rf"^\s*(?:def|class) {name}\b|^\s*{name}\b.* = ", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert wrong == []
    assert all(places for places in named.values())
    assert all((ROOT / path).exists() for places in named.values() for path, _ in places)


def test_every_target_of_make_that_a_document_names_is_there():
    targets = set(present(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))[1].split())
    named = {
        word for document in DOCUMENTS for code in code_of(document) for word in re.findall(r"^make ([\w-]+)", code)
    }
    assert len(named) > 5
    assert named <= targets


def commands_of(application: typer.Typer) -> dict[str, Any]:
    group: Any = typer.main.get_command(application)
    return group.commands


def options_of(command) -> set[str]:
    return {spelling for parameter in command.params for spelling in [*parameter.opts, *parameter.secondary_opts]}


def test_every_command_and_flag_that_a_document_shows_is_there():
    commands = commands_of(app)
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


def test_every_flag_that_a_document_names_alone_is_one_of_a_command():
    commands = commands_of(app).values()
    there = set().union(
        *(options_of(one) for command in commands for one in getattr(command, "commands", {"": command}).values())
    )
    pages = [page for page in DOCUMENTS if page.name not in ("CONTRIBUTING.md", "quantize.md")]
    named = {code.split()[0] for page in pages for code in code_of(page) if code.startswith("--")}
    assert len(named) >= 5
    assert named - {"--build-arg", "--shm-size", "--rounds"} <= there


def test_the_flags_of_quantize_are_those_of_its_page():
    page = {flag for code in code_of(ROOT / "docs/quantize.md") for flag in re.findall(r"(?<![\w-])--[a-z-]+", code)}
    assert page <= options_of(commands_of(app)["quantize"])


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
