"""Programs of one's own and others: Open WebUI, n8n, Home Assistant, the SDKs, curl."""

from __future__ import annotations

import json
import shlex
from urllib.parse import urlsplit

from server.cli.connect.facts import Connection
from server.cli.connect.recipe import Recipe, Text
from server.cli.connect.words import KEY, from_outside, key_words
from server.settings.listener import is_loopback


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


def n8n(to: Connection) -> Recipe:
    """A credential and a model node."""
    fields = [
        "Credentials, Create, OpenAI:",
        f"API Key: {key_words(to)}",
        f"Base URL: {to.v1}",
        "",
        "node OpenAI Chat Model:",
        f"Model, By ID: {to.main.name}",
    ]
    return Recipe((Text("n8n", "text", "\n".join(fields)),), from_outside(to))


def homeassistant(to: Connection) -> Recipe:
    """Its own integration for Ollama, and two of HACS."""
    own = [
        "Settings, Devices & services, Add integration, Ollama:",
        f"URL: {to.base}",
        f"API key: {key_words(to)}",
        f"Model: {to.main.name}",
        f"Context window size: {to.main.context}",
    ]
    fields = [
        "HACS: Local OpenAI LLM, or Extended OpenAI Conversation; then Settings, Devices & services, Add integration:",
        f"Server URL / Base URL: {to.v1}",
        f"API key: {key_words(to)}",
        f"Model: {to.main.name}",
        f"Maximum tokens of an answer: {min(to.main.answer, 1024)}",
    ]
    pieces = (Text("its own", "text", "\n".join(own)), Text("from HACS", "text", "\n".join(fields)))
    return Recipe(pieces, from_outside(to))


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
