"""Editors: Zed, Copilot in VS Code, Continue, JetBrains."""

from __future__ import annotations

from typing import Any

from server.cli.connect.edits import Put, PutEntries
from server.cli.connect.facts import Connection, Model
from server.cli.connect.recipe import File, Recipe, Text, folder
from server.cli.connect.words import KEY, key_words, named


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
                "images": model.can("vision"),
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
            "vision": model.can("vision"),
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
        (PutEntries((), ({**entry, "models": models},), named("name", "onecard")),),
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
            **({"capabilities": able} if (able := _continue_capabilities(model)) else {}),
            "defaultCompletionOptions": {"contextLength": model.context, "maxTokens": model.answer},
        }
        for model in listed
        if (roles := _continue_roles(model))
    ]
    changes = (
        Put(("name",), "Local", missing=True),
        Put(("version",), "1.0.0", missing=True),
        Put(("schema",), "v1", missing=True),
        PutEntries(("models",), tuple(entries), named("name", "onecard/", begins=True)),
    )
    file = File(folder("CONTINUE_GLOBAL_DIR", "~/.continue") / "config.yaml", "yaml", changes)
    notes = [f"put {KEY}=KEY into ~/.continue/.env: Continue reads its secrets there"] if to.keyed else []
    return Recipe((file,), tuple(notes))


def _continue_capabilities(model: Model) -> list[str]:
    if not model.can("chat"):
        return []
    return [*(["tool_use"] if model.can("tools") else []), *(["image_input"] if model.can("vision") else [])]


def _continue_roles(model: Model) -> list[str]:
    roles = ["chat", "edit", "apply"] if model.can("chat") else []
    return [
        *roles,
        *(["autocomplete"] if model.can("infill") else []),
        *(["embed"] if model.can("embedding") else []),
        *(["rerank"] if model.can("rerank") else []),
    ]


def jetbrains(to: Connection) -> Recipe:
    """AI Assistant: as Ollama every model, without a key; else one provider for each model."""
    every = ["Settings, Tools, AI Assistant, Providers & API keys, Ollama:", f"URL: {to.base}"]
    fields = [
        "Settings, Tools, AI Assistant, Providers & API keys, OpenAI-compatible:",
        f"URL: {to.v1}",
        f"API key: {key_words(to)}",
        f"Model: {to.main.name}",
        f"Tool calling: {'on' if to.main.can('tools') else 'off'}",
    ]
    one = Text("AI Assistant, one model", "text", "\n".join(fields))
    return Recipe((one,) if to.keyed else (Text("AI Assistant, every model", "text", "\n".join(every)), one))
