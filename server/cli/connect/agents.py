"""Agents and chats in a terminal: Codex, Claude Code, opencode, Cline, aider, llm."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from server.cli.connect.edits import Put, PutEntries
from server.cli.connect.facts import Connection
from server.cli.connect.recipe import File, Recipe, Text, folder
from server.cli.connect.words import AGENTS_NEED, KEY, key_notes, key_words, named, small

_CLAUDE_NEEDS: Final = 49152
_CLAUDE_WAITS_MS: Final = 1_800_000
"""For the first event of an answer, which comes behind a long prompt. It does not count pings."""
_CODEX_NEEDS: Final = 16384
_OPENCODE_SEES: Final = {"attachment": True, "modalities": {"input": ["text", "image"], "output": ["text"]}}


def codex(to: Connection) -> Recipe:
    """A profile of its own, so that nothing of the user's configuration changes. It speaks /v1/responses only."""
    main = to.main
    provider = {"name": "onecard", "base_url": to.v1, "wire_api": "responses"}
    if to.keyed:
        provider["env_key"] = KEY
    file = File(
        folder("CODEX_HOME", "~/.codex") / "onecard.config.toml",
        "toml",
        (
            Put(("model",), main.name),
            Put(("model_provider",), "onecard"),
            Put(("model_context_window",), main.context),
            Put(("model_auto_compact_token_limit",), main.context * 4 // 5),
            Put(("show_raw_agent_reasoning",), True),
            Put(("model_providers",), {"onecard": provider}),
        ),
    )
    notes = ["start it with `codex --profile onecard`; the same lines in config.toml make it what `codex` uses always"]
    return Recipe((file,), (*notes, *key_notes(to), *small(main, _CODEX_NEEDS, "Codex's own instructions take 14,000")))


def claude(to: Connection) -> Recipe:
    """Its settings, and the same for one shell. Both numbers are needed: see docs/clients.md."""
    main = to.main
    variables = {
        "ANTHROPIC_BASE_URL": to.base,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": main.name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": main.name,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(main.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(main.answer),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(_CLAUDE_WAITS_MS),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    changes = [Put(("env", name), value) for name, value in variables.items()]
    if to.keyed:
        lines[1] = f'export ANTHROPIC_AUTH_TOKEN="${KEY}"'
        changes[1] = Put(("apiKeyHelper",), f"printenv {KEY}")
    path = folder("CLAUDE_CONFIG_DIR", "~/.claude") / "settings.json"
    notes = [*key_notes(to), *small(main, _CLAUDE_NEEDS, "with less Claude Code sums up without end")]
    if main.name.startswith("claude-"):
        notes.append("a name that begins with claude- hides the context: give the model another alias, and --model it")
    shell = Text("or for one shell", "sh", "\n".join([*lines, "claude"]))
    return Recipe((File(path, "json", tuple(changes)), shell), tuple(notes))


def opencode(to: Connection) -> Recipe:
    """A provider of its own; the user's default model stays."""
    usual = folder("XDG_CONFIG_HOME", "~/.config") / "opencode"
    commented = usual / "opencode.jsonc"
    options = {"baseURL": to.v1, **({"apiKey": f"{{env:{KEY}}}"} if to.keyed else {})}
    models = {
        model.name: {
            "name": model.name,
            "limit": {"context": model.context, "output": model.answer},
            "tool_call": model.can("tools"),
            "reasoning": model.can("thinking"),
            **(_OPENCODE_SEES if model.can("vision") else {}),
        }
        for model in to.chats
    }
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "onecard", "options": options, "models": models}
    file = File(
        commented if commented.exists() else usual / "opencode.json",
        "jsonc",
        (Put(("$schema",), "https://opencode.ai/config.json", missing=True), Put(("provider", "onecard"), provider)),
    )
    start = f"start it with `opencode -m {shlex.quote(f'onecard/{to.main.name}')}`"
    return Recipe((file,), (start, *key_notes(to), *small(to.main, AGENTS_NEED, "an agent's own prompt takes 10,000")))


def cline(to: Connection) -> Recipe:
    """It keeps its settings itself: a command for the terminal, fields for VS Code."""
    key = f'"${KEY}"' if to.keyed else "none"
    name = shlex.quote(to.main.name)
    shell = Text("in a terminal", "sh", f"cline auth -p openai-compatible -k {key} -b {to.v1} -m {name}")
    fields = [
        "API Provider: OpenAI Compatible",
        f"Base URL: {to.v1}",
        f"API Key: {key_words(to)}",
        f"Model ID: {to.main.name}",
        f"Context Window Size: {to.main.context}",
        f"Max Output Tokens: {to.main.answer}",
        f"Supports Images: {'on' if to.main.can('vision') else 'off'}",
    ]
    entered = Text("in VS Code: Cline's settings", "text", "\n".join(fields))
    return Recipe((shell, entered), tuple(small(to.main, AGENTS_NEED, "an agent's own prompt takes 10,000")))


def aider(to: Connection) -> Recipe:
    """Its configuration, and the figures of the models that it does not know."""
    home = Path.home()
    settings = [Put(("openai-api-base",), to.v1), Put(("model",), f"openai/{to.main.name}")]
    if not to.keyed:
        settings.append(Put(("openai-api-key",), "none"))
    figures = tuple(
        Put(
            (f"openai/{model.name}",),
            {
                "max_tokens": model.answer,
                "max_input_tokens": model.context - model.answer,
                "max_output_tokens": model.answer,
                "input_cost_per_token": 0,
                "output_cost_per_token": 0,
                "litellm_provider": "openai",
                "mode": "chat",
            },
        )
        for model in to.chats
    )
    files = (
        File(home / ".aider.conf.yml", "yaml", tuple(settings)),
        File(home / ".aider.model.metadata.json", "json", figures),
    )
    notes = (f'start it with `OPENAI_API_KEY="${KEY}" aider`',) if to.keyed else ()
    return Recipe(files, notes)


def llm(to: Connection) -> Recipe:
    """Simon Willison's `llm`: one entry for each model."""
    key = {"api_key_name": "onecard"} if to.keyed else {}
    entries = [
        {
            "model_id": f"onecard/{model.name}",
            "model_name": model.name,
            "api_base": to.v1,
            **key,
            "supports_tools": model.can("tools"),
            "supports_schema": True,
        }
        for model in to.chats
    ]
    usual = folder("XDG_CONFIG_HOME", "~/.config") / "io.datasette.llm"
    place = folder("LLM_USER_PATH", str(usual))
    changes = (PutEntries((), tuple(entries), named("model_id", "onecard/", begins=True)),)
    notes = [f"then: `llm -m {shlex.quote(f'onecard/{to.main.name}')} 'Hello'`"]
    if to.keyed:
        notes.insert(0, "give it the key once: `llm keys set onecard`")
    return Recipe((File(place / "extra-openai-models.yaml", "yaml", changes),), tuple(notes))
