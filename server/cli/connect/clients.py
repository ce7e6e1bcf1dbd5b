"""Every client that `onecard connect` knows: its files, its commands, and what was found out about it.

`docs/clients.md` shows the same texts; a test holds the page to what these functions give.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from server.cli.connect.edits import Put, PutEntries
from server.cli.connect.facts import Connection, Model
from server.cli.connect.recipe import File, Recipe, Text, folder
from server.settings.config import is_loopback

KEY: Final = "ONECARD_API_KEY"
_AGENTS_NEED: Final = 32768
_CLAUDE_NEEDS: Final = 49152
_CODEX_NEEDS: Final = 16384


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
    return Recipe(
        (file,), (*notes, *_key_notes(to), *_small(main, _CODEX_NEEDS, "Codex's own instructions take 14,000"))
    )


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
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    changes = [Put(("env", name), value) for name, value in variables.items()]
    if to.keyed:
        lines[1] = f'export ANTHROPIC_AUTH_TOKEN="${KEY}"'
        changes[1] = Put(("apiKeyHelper",), f"printenv {KEY}")
    path = folder("CLAUDE_CONFIG_DIR", "~/.claude") / "settings.json"
    notes = [*_key_notes(to), *_small(main, _CLAUDE_NEEDS, "with less Claude Code sums up without end")]
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
    return Recipe(
        (file,), (start, *_key_notes(to), *_small(to.main, _AGENTS_NEED, "an agent's own prompt takes 10,000"))
    )


def zed(to: Connection) -> Recipe:
    """A provider named onecard: Zed looks for its key in ONECARD_API_KEY."""
    models = [
        {
            "name": model.name,
            "display_name": model.name,
            "max_tokens": model.context,
            "max_output_tokens": model.answer,
            "capabilities": {
                "tools": model.can("tools"),
                "images": False,
                "parallel_tool_calls": False,
                "prompt_cache_key": False,
            },
        }
        for model in to.chats
    ]
    provider = {"api_url": to.v1, "available_models": models}
    file = File(
        folder("XDG_CONFIG_HOME", "~/.config") / "zed" / "settings.json",
        "jsonc",
        (Put(("language_models", "openai_compatible", "onecard"), provider),),
    )
    what = "one of the server's keys" if to.keyed else "any word, such as none"
    note = f"Zed wants a key: start it with {KEY} set to {what}, or enter it under `agent: open settings`"
    return Recipe((file,), (note,))


def vscode(to: Connection) -> Recipe:
    """Copilot's custom endpoint, VS Code 1.122 and newer."""
    models = [
        {
            "id": model.name,
            "name": model.name,
            "url": f"{to.v1}/chat/completions",
            "toolCalling": model.can("tools"),
            "vision": False,
            "maxInputTokens": model.context - model.answer,
            "maxOutputTokens": model.answer,
        }
        for model in to.chats
    ]
    entry: dict[str, Any] = {"name": "onecard", "vendor": "customendpoint", "apiType": "chat-completions"}
    if not to.keyed:
        entry["apiKey"] = "none"
    file = File(
        folder("XDG_CONFIG_HOME", "~/.config") / "Code" / "User" / "chatLanguageModels.json",
        "jsonc",
        (PutEntries((), ({**entry, "models": models},), _named("name", "onecard")),),
    )
    notes = ["then choose the model under Manage Models of the chat; `onecard connect continue` is for Continue"]
    if to.keyed:
        notes.append("enter the key at the provider's gear in Manage Models: VS Code keeps it outside of the file")
    return Recipe((file,), tuple(notes))


def continue_(to: Connection) -> Recipe:
    """Continue, in VS Code and JetBrains: chat, completion and vectors, each by what a model can do."""
    secret = {"apiKey": f"${{{{ secrets.{KEY} }}}}"} if to.keyed else {}
    listed = [*to.chats, *(model for model in to.models if not model.can("chat"))]
    entries = [
        {
            "name": f"onecard/{model.name}",
            "provider": "openai",
            "model": model.name,
            "apiBase": to.v1,
            **secret,
            "roles": roles,
            **({"capabilities": ["tool_use"]} if model.can("chat", "tools") else {}),
            "defaultCompletionOptions": {"contextLength": model.context, "maxTokens": model.answer},
        }
        for model in listed
        if (roles := _continue_roles(model))
    ]
    changes = (
        Put(("name",), "Local", missing=True),
        Put(("version",), "1.0.0", missing=True),
        Put(("schema",), "v1", missing=True),
        PutEntries(("models",), tuple(entries), _named("name", "onecard/", begins=True)),
    )
    file = File(folder("CONTINUE_GLOBAL_DIR", "~/.continue") / "config.yaml", "yaml", changes)
    notes = [f"put {KEY}=KEY into ~/.continue/.env: Continue reads its secrets there"] if to.keyed else []
    return Recipe((file,), tuple(notes))


def _continue_roles(model: Model) -> list[str]:
    roles = ["chat", "edit", "apply"] if model.can("chat") else []
    return [
        *roles,
        *(["autocomplete"] if model.can("infill") else []),
        *(["embed"] if model.can("embedding") else []),
        *(["rerank"] if model.can("rerank") else []),
    ]


def cline(to: Connection) -> Recipe:
    """It keeps its settings itself: a command for the terminal, fields for VS Code."""
    key = f'"${KEY}"' if to.keyed else "none"
    name = shlex.quote(to.main.name)
    shell = Text("in a terminal", "sh", f"cline auth -p openai-compatible -k {key} -b {to.v1} -m {name}")
    fields = [
        "API Provider: OpenAI Compatible",
        f"Base URL: {to.v1}",
        f"API Key: {_key_words(to)}",
        f"Model ID: {to.main.name}",
        f"Context Window Size: {to.main.context}",
        f"Max Output Tokens: {to.main.answer}",
        "Supports Images: off",
    ]
    entered = Text("in VS Code: Cline's settings", "text", "\n".join(fields))
    return Recipe((shell, entered), tuple(_small(to.main, _AGENTS_NEED, "an agent's own prompt takes 10,000")))


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
    changes = (PutEntries((), tuple(entries), _named("model_id", "onecard/", begins=True)),)
    notes = [f"then: `llm -m {shlex.quote(f'onecard/{to.main.name}')} 'Hello'`"]
    if to.keyed:
        notes.insert(0, "give it the key once: `llm keys set onecard`")
    return Recipe((File(place / "extra-openai-models.yaml", "yaml", changes),), tuple(notes))


def openwebui(to: Connection) -> Recipe:
    """Docker with the host's own network, Docker with its own, and pip."""
    key = f'"${KEY}"' if to.keyed else "none"
    image = "-v open-webui:/app/backend/data --name open-webui ghcr.io/open-webui/open-webui:main"
    off = "-e ENABLE_OLLAMA_API=false"
    parts = urlsplit(to.base)
    local = is_loopback(parts.hostname or "")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    inside = f"{parts.scheme}://host.docker.internal:{port}/v1"
    bridge_key = f'"${KEY}"'
    bridged = [f"onecard serve --host 0.0.0.0 --port {port} --api-key-file keys   # a container comes from outside"]
    if not local:
        inside, bridge_key, bridged = to.v1, key, []
    bridged.append(
        f"docker run -d -p 3000:8080 --add-host=host.docker.internal:host-gateway -e OPENAI_API_BASE_URL={inside} "
        f"-e OPENAI_API_KEY={bridge_key} {off} {image}"
    )
    host = f"docker run -d --network=host -e PORT=3000 -e OPENAI_API_BASE_URL={to.v1} -e OPENAI_API_KEY={key} {off}"
    pip = f"OPENAI_API_BASE_URL={to.v1} OPENAI_API_KEY={key} ENABLE_OLLAMA_API=false open-webui serve --port 3000"
    pieces = (
        *([Text("Docker on this machine, with its network", "sh", f"{host} {image}")] if local else []),
        Text("Docker with a network of its own", "sh", "\n".join(bridged)),
        Text("pip", "sh", pip),
    )
    kept = "the variables count at the first start; later see Settings, Connections, OpenAI API"
    return Recipe(pieces, ("it is at http://localhost:3000 then", kept))


def jetbrains(to: Connection) -> Recipe:
    """AI Assistant; one provider for each model."""
    fields = [
        "Settings, Tools, AI Assistant, Providers & API keys, OpenAI-compatible:",
        f"URL: {to.v1}",
        f"API key: {_key_words(to)}",
        f"Model: {to.main.name}",
        f"Tool calling: {'on' if to.main.can('tools') else 'off'}",
    ]
    return Recipe((Text("AI Assistant", "text", "\n".join(fields)),))


def n8n(to: Connection) -> Recipe:
    """A credential and a model node."""
    fields = [
        "Credentials, Create, OpenAI:",
        f"API Key: {_key_words(to)}",
        f"Base URL: {to.v1}",
        "",
        "node OpenAI Chat Model:",
        f"Model, By ID: {to.main.name}",
    ]
    return Recipe((Text("n8n", "text", "\n".join(fields)),), _from_outside(to))


def homeassistant(to: Connection) -> Recipe:
    """Two integrations of HACS take an address."""
    fields = [
        "HACS: Local OpenAI LLM, or Extended OpenAI Conversation; then Settings, Devices & services, Add integration:",
        f"Server URL / Base URL: {to.v1}",
        f"API key: {_key_words(to)}",
        f"Model: {to.main.name}",
        f"Maximum tokens of an answer: {min(to.main.answer, 1024)}",
    ]
    return Recipe((Text("Home Assistant", "text", "\n".join(fields)),), _from_outside(to))


def python(to: Connection) -> Recipe:
    """OpenAI's SDK and Anthropic's."""
    key = f'os.environ["{KEY}"]' if to.keyed else '"none"'
    head = ["import os", ""] if to.keyed else []
    model, base, v1 = (json.dumps(text, ensure_ascii=False) for text in (to.main.name, to.base, to.v1))
    openai = [
        *head,
        "from openai import OpenAI",
        "",
        f"client = OpenAI(base_url={v1}, api_key={key})",
        f'answer = client.responses.create(model={model}, input="What is the capital of France?")',
        "print(answer.output_text)",
    ]
    anthropic = [
        *head,
        "from anthropic import Anthropic",
        "",
        f"client = Anthropic(base_url={base}, api_key={key})",
        'messages = [{"role": "user", "content": "What is the capital of France?"}]',
        f"print(client.messages.create(model={model}, max_tokens=200, messages=messages).content[-1].text)",
    ]
    return Recipe((Text("openai", "python", "\n".join(openai)), Text("anthropic", "python", "\n".join(anthropic))))


def node(to: Connection) -> Recipe:
    """OpenAI's SDK."""
    key = f"process.env.{KEY}" if to.keyed else '"none"'
    model, v1 = (json.dumps(text, ensure_ascii=False) for text in (to.main.name, to.v1))
    lines = [
        'import OpenAI from "openai";',
        "",
        f"const client = new OpenAI({{ baseURL: {v1}, apiKey: {key} }});",
        f'const answer = await client.responses.create({{ model: {model}, input: "What is the capital of France?" }});',
        "console.log(answer.output_text);",
    ]
    return Recipe((Text("openai, as a module (.mjs)", "js", "\n".join(lines)),))


def curl(to: Connection) -> Recipe:
    """One streamed chat."""
    body = {
        "model": to.main.name,
        "stream": True,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    key = f' -H "Authorization: Bearer ${KEY}"' if to.keyed else ""
    sent = shlex.quote(json.dumps(body, ensure_ascii=False))
    line = f"curl -N {to.v1}/chat/completions{key} -H 'Content-Type: application/json' -d {sent}"
    return Recipe((Text("curl", "sh", line),))


@dataclass(frozen=True)
class Known:
    """A client in the table."""

    about: str
    recipe: Callable[[Connection], Recipe]


CLIENTS: Final[Mapping[str, Known]] = MappingProxyType(
    {
        "codex": Known("OpenAI's Codex", codex),
        "claude": Known("Claude Code", claude),
        "opencode": Known("opencode", opencode),
        "zed": Known("the editor Zed", zed),
        "vscode": Known("Copilot in VS Code, by a custom endpoint", vscode),
        "continue": Known("Continue in VS Code and JetBrains", continue_),
        "cline": Known("Cline in a terminal and VS Code", cline),
        "aider": Known("aider", aider),
        "llm": Known("the command llm", llm),
        "openwebui": Known("Open WebUI by Docker or pip", openwebui),
        "jetbrains": Known("AI Assistant of JetBrains' IDEs", jetbrains),
        "n8n": Known("n8n", n8n),
        "homeassistant": Known("Home Assistant", homeassistant),
        "python": Known("the SDKs openai and anthropic", python),
        "node": Known("OpenAI's SDK for Node", node),
        "curl": Known("curl", curl),
    }
)


def _named(field: str, name: str, *, begins: bool = False) -> Callable[[Any], bool]:
    def ours(entry: Any) -> bool:
        said = str(entry.get(field, "")) if isinstance(entry, Mapping) else ""
        return said.startswith(name) if begins else said == name

    return ours


def _key_words(to: Connection) -> str:
    return "one of the server's keys" if to.keyed else "none (any word does)"


def _key_notes(to: Connection) -> list[str]:
    return (
        [f"the server wants a key, and the client reads it from the environment: export {KEY}=..."] if to.keyed else []
    )


def _small(model: Model, least: int, why: str) -> list[str]:
    """What to say of a context that is too small for an agent."""
    if model.context >= least:
        return []
    return [
        f"{model.name} has a context of {model.context} tokens, and {least} is the least that does: {why}. "
        f"hint: context = {max(65536, least)} in its table, if `onecard fit` says that it fits"
    ]


def _from_outside(to: Connection) -> tuple[str, ...]:
    """For what mostly runs on another machine or in a container."""
    if not is_loopback(urlsplit(to.base).hostname or ""):
        return ()
    return (
        "this address is of this machine only. For a container or another machine start "
        "`onecard serve --host 0.0.0.0 --api-key-file keys` and give the client this machine's name; "
        "behind a proxy list the proxy's name too: --allowed-host NAME",
    )
