"""Names of models for a shell's completion: from the configuration file and a server that answers at once.

Only the standard library is imported: a shell waits for it at each press of the tab key.

bash takes `:` and `=` for words of their own, and replaces only what stands behind them; zsh and fish do not. It takes
what it is given as it is, so that a space needs its backslash.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from typer import Context

from server.own_folder import user_folder
from server.settings.builtin import BUILT_IN

_WITHIN_S: Final = 0.3
_BREAKS: Final = (":", "=")
_BEFORE: Final = "_ONECARD_COMPLETE_BEFORE"
"""What bash has of the word before the part that it replaces."""
_SPECIAL: Final = re.compile(r"[^\w@%+=:,./-]")


def rejoin_words_of_bash() -> None:
    """In the environment that bash completes by: words that it has parted, as they were written."""
    if os.environ.get("_ONECARD_COMPLETE") != "complete_bash":
        return
    try:
        parts = shlex.split(os.environ.get("COMP_WORDS", ""), posix=False)
        at = int(os.environ.get("COMP_CWORD", ""))
    except ValueError:
        return  # an open quotation mark: bash has parted nothing then
    words: list[str] = []
    for part in parts[: at + 1]:
        if words and (part in _BREAKS or (words[-1].endswith(_BREAKS) and len(words) > 1)):
            words[-1] += part
        else:
            words.append(part)
    if at >= len(parts) and not (words and words[-1].endswith(_BREAKS)):
        words.append("")  # the word that is to be completed has not begun
    last = words.pop() if words else ""
    begins = max(last.rfind(mark) for mark in _BREAKS) + 1
    os.environ[_BEFORE] = last[:begins]
    os.environ["COMP_WORDS"] = " ".join([*words, last[begins:]])
    os.environ["COMP_CWORD"] = str(len(words))


def model_names(context: Context, incomplete: str) -> list[str]:
    """Names and aliases that begin so; none where nothing can be read. Raises nothing."""
    config = _configuration(context.params.get("config"))
    url = context.params.get("url") or os.environ.get("ONECARD_URL")
    names = dict.fromkeys([*_configured(config), *_served(config, url), *BUILT_IN])
    if os.environ.get("_ONECARD_COMPLETE") != "complete_bash":
        return [name for name in names if name.startswith(incomplete)]
    before = os.environ.get(_BEFORE, "")
    found = [name.removeprefix(before) for name in names if name.startswith(before + incomplete)]
    return [_SPECIAL.sub(r"\\\g<0>", name) for name in found]


def _configuration(named: object) -> dict[str, Any]:
    file = Path(str(named)).expanduser() if named else user_folder("XDG_CONFIG_HOME", "~/.config") / "config.toml"
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError):
        return {}


def _configured(config: dict[str, Any]) -> list[str]:
    models = _table(config, "models")
    aliases = [_table(models, name).get("aliases") for name in models]
    adapters = [f"{name}:{adapter}" for name in models for adapter in _table(_table(models, name), "adapters")]
    return [*models, *adapters, *(str(alias) for some in aliases if isinstance(some, list) for alias in some)]


def _table(of: dict[str, Any], key: str) -> dict[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _served(config: dict[str, Any], url: str | None) -> list[str]:
    server = _table(config, "server")
    listed = [some for name in ("admin_keys", "api_keys") if isinstance(some := server.get(name), list)]
    key = os.environ.get("ONECARD_API_KEY") or ("" if url else next((str(key) for some in listed for key in some), ""))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(server.get("host")), server.get("host"))  # noqa: S104
    base = url or f"http://{f'[{host}]' if ':' in str(host) else host or '127.0.0.1'}:{server.get('port') or 8080}"
    try:
        parts = urlsplit(base if "://" in base else f"http://{base}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=_WITHIN_S)
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"} if key else {})
        answer = json.loads(connection.getresponse().read())["data"]
        return [str(name) for one in answer for name in (one["id"], *one.get("aliases", []))]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return []
