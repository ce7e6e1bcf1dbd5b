"""The chat template applied outside transformers: plain sandboxed jinja2, cached per process by its caller."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_PATH = Path(__file__).resolve().parent / "chat_template.jinja"
Render = Callable[..., str]


def load_renderer() -> Render:
    """A function of keyword arguments messages, tools, add_generation_prompt and enable_thinking."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    return environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8")).render


def _tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
