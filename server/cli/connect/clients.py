"""Every client that `onecard connect` knows, by the name a person types.

`docs/clients.md` shows the same texts; a test holds the page to what these functions give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from server.cli.connect import agents, editors, programs
from server.cli.connect.facts import Connection
from server.cli.connect.recipe import Recipe


@dataclass(frozen=True)
class Known:
    """A client in the table."""

    about: str
    recipe: Callable[[Connection], Recipe]


CLIENTS: Final[Mapping[str, Known]] = MappingProxyType(
    {
        "codex": Known("OpenAI's Codex", agents.codex),
        "claude": Known("Claude Code", agents.claude),
        "opencode": Known("opencode", agents.opencode),
        "zed": Known("the editor Zed", editors.zed),
        "vscode": Known("Copilot in VS Code, by a custom endpoint", editors.vscode),
        "continue": Known("Continue in VS Code and JetBrains", editors.continue_),
        "cline": Known("Cline in a terminal and VS Code", agents.cline),
        "aider": Known("aider", agents.aider),
        "llm": Known("the command llm", agents.llm),
        "openwebui": Known("Open WebUI by Docker or pip", programs.openwebui),
        "jetbrains": Known("AI Assistant of JetBrains' IDEs", editors.jetbrains),
        "n8n": Known("n8n", programs.n8n),
        "homeassistant": Known("Home Assistant", programs.homeassistant),
        "python": Known("the SDKs openai and anthropic", programs.python),
        "node": Known("OpenAI's SDK for Node", programs.node),
        "curl": Known("curl", programs.curl),
    }
)
