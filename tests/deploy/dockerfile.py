"""A Dockerfile as data: stages with their instructions, arguments filled in."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]

    def environment(self) -> dict[str, str]:
        pairs = [pair for value in self.values("ENV") for pair in shlex.split(value)]
        return dict(pair.split("=", 1) for pair in pairs)

    def command(self, instruction: str) -> list[str]:
        """The last JSON-form value."""
        return json.loads(self.values(instruction)[-1])


def stages(variant: str) -> dict[str, Stage]:
    """Stages by name; the last one, which is the image, is `image`."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    stage = None
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, value = line.partition(" ")
        value = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), value.strip())
        if instruction == "ARG":
            name, _, default = value.partition("=")
            arguments[name] = variant if name == "VARIANT" else default
        elif instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stage = found[name or "image"] = Stage(base, name or "image")
        else:
            assert stage is not None
            stage.steps.append((instruction, value))
    return found
