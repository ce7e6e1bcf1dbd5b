"""Changes to a client's configuration file: TOML, JSON, JSON with comments or YAML. Pure: text in, text out.

Whatever a file holds beside a change stays: comments, order and other values. What is no sound file is never changed.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from server.cli.connect import jsonc

if TYPE_CHECKING:
    from collections.abc import Sequence

Format = Literal["toml", "json", "jsonc", "yaml"]
NAMES: Final = {"toml": "TOML", "json": "JSON", "jsonc": "JSON with comments", "yaml": "YAML"}


class EditError(Exception):
    """A file that cannot be changed; the message is a sentence without the file's name."""


@dataclass(frozen=True)
class Put:
    """A value at a path of keys."""

    path: tuple[str, ...]
    value: Any
    missing: bool = False
    """Only where there is none."""


@dataclass(frozen=True)
class PutEntries:
    """Entries of a list: those of an earlier time are dropped, these come last."""

    path: tuple[str, ...]
    """Empty where the file itself is a list."""
    entries: tuple[Any, ...]
    ours: Callable[[Any], bool]
    """Whether an entry is one of an earlier time."""


Change = Put | PutEntries


def fresh(kind: Format, changes: Sequence[Change]) -> str:
    """A new file that holds nothing but the changes."""
    return _written(kind, _expected(None, changes))


def edited(kind: Format, text: str, changes: Sequence[Change]) -> str:
    """The file's text with the changes. Raises EditError."""
    bare = text.removeprefix("\ufeff")
    before = read(kind, bare)
    if before is None:  # nothing or comments alone
        return text + ("" if not bare or bare.endswith("\n") else "\n") + fresh(kind, changes)
    expected = _expected(before, changes)
    if expected == before:
        return text
    after = _EDITORS[kind](bare, changes)
    if "\r\n" in bare:
        after = re.sub(r"\r?\n", "\r\n", after)
    if read(kind, after) != expected:
        raise EditError("it is written in a way that cannot be changed without harm")
    return text[: len(text) - len(bare)] + after


def replaced(kind: Format, text: str, changes: Sequence[Change]) -> list[str]:
    """The keys that hold another value before the change."""
    before = read(kind, text.removeprefix("\ufeff"))
    found = []
    for change in changes:
        node = before
        for key in change.path if isinstance(change, Put) and not change.missing else ():
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(change, Put) and not change.missing and node is not None and node != change.value:
            found.append(".".join(change.path))
    return found


def read(kind: Format, text: str) -> Any:
    """What a file says, as plain data; None where it says nothing. Raises EditError."""
    try:
        return _READERS[kind](text)
    except EditError:
        raise
    except Exception as problem:  # each library has errors of its own
        told = " ".join(str(problem).split())
        raise EditError(f"it is no {NAMES[kind]}: {told[:200]}") from None


def _expected(before: Any, changes: Sequence[Change]) -> Any:
    """What the file has to say afterwards. Raises EditError."""
    whole: Any = copy.deepcopy(before)
    for change in changes:
        empty: Any = {} if change.path or isinstance(change, Put) else []
        whole = empty if whole is None else whole
        keys = change.path if isinstance(change, PutEntries) else change.path[:-1]
        node: Any = whole
        for index, key in enumerate(keys):
            _require(node, dict, change.path[:index])
            last = isinstance(change, PutEntries) and index == len(keys) - 1
            if node.get(key) is None:
                node[key] = [] if last else {}
            node = node[key]
        if isinstance(change, PutEntries):
            _require(node, list, change.path)
            node[:] = [entry for entry in node if not change.ours(entry)] + copy.deepcopy(list(change.entries))
        else:
            _require(node, dict, keys)
            if not (change.missing and node.get(change.path[-1]) is not None):
                node[change.path[-1]] = copy.deepcopy(change.value)
    return whole


def _require(node: Any, kind: type, path: Sequence[str]) -> None:
    if not isinstance(node, kind):
        where = f"'{'.'.join(path)}'" if path else "the file"
        raise EditError(f"{where} holds no {'list' if kind is list else 'table'}")


# Each format: how it is read, written anew, and changed in place.


def _read_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text) or ({} if text.strip() else None)


def _read_json(text: str) -> Any:
    return jsonc.read(text, comments=False).value if text.strip() else None


def _read_jsonc(text: str) -> Any:
    return jsonc.read(text, comments=True).value if jsonc.says_something(text) else None


def _read_yaml(text: str) -> Any:
    from ruamel.yaml import YAML

    documents = list(YAML(typ="safe", pure=True).load_all(text))
    if len(documents) > 1:
        raise EditError("it holds several YAML documents")
    return documents[0] if documents else None


_READERS: Final[dict[Format, Callable[[str], Any]]] = {
    "toml": _read_toml,
    "json": _read_json,
    "jsonc": _read_jsonc,
    "yaml": _read_yaml,
}


def _written(kind: Format, value: Any) -> str:
    if kind == "toml":
        import tomlkit

        return tomlkit.dumps(value)
    if kind == "yaml":
        return _yaml_text(value, mapping=2, offset=0 if isinstance(value, list) else 2)
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _edit_toml(text: str, changes: Sequence[Change]) -> str:
    import tomlkit

    document = tomlkit.parse(text)
    _change(document, changes)
    return tomlkit.dumps(document)


def _edit_yaml(text: str, changes: Sequence[Change]) -> str:
    from ruamel.yaml.util import load_yaml_guess_indent

    document, indent, offset = load_yaml_guess_indent(text)
    _change(document, changes)
    return _yaml_text(document, mapping=indent or 2, offset=offset if offset is not None else 2)


def _yaml_text(value: Any, *, mapping: int, offset: int) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.allow_unicode = True
    yaml.width = 2**20
    yaml.indent(mapping=mapping, sequence=offset + 2, offset=offset)
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()


def _change(document: Any, changes: Sequence[Change]) -> None:
    """The same on a library's document, which keeps comments; `_expected` has checked the shapes."""
    for change in changes:
        node = document
        for key in change.path[:-1]:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if isinstance(change, Put):
            if not (change.missing and node.get(change.path[-1]) is not None):
                node[change.path[-1]] = copy.deepcopy(change.value)
            continue
        if change.path:
            if node.get(change.path[-1]) is None:
                node[change.path[-1]] = []
            node = node[change.path[-1]]
        for index in reversed([index for index, entry in enumerate(node) if change.ours(entry)]):
            del node[index]
        node.extend(copy.deepcopy(list(change.entries)))


def _edit_json(text: str, changes: Sequence[Change], *, comments: bool = False) -> str:
    for change in changes:
        value = jsonc.read(text, comments=comments).value
        for key in change.path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(change, Put):
            if not (change.missing and value is not None):
                text = jsonc.put(text, change.path, change.value, comments=comments)
        elif value is None:
            text = jsonc.put(text, change.path, list(change.entries), comments=comments)
        else:
            keep = [not change.ours(entry) for entry in value]
            text = jsonc.put_items(text, change.path, keep, change.entries, comments=comments)
    return text


def _edit_jsonc(text: str, changes: Sequence[Change]) -> str:
    return _edit_json(text, changes, comments=True)


_EDITORS: Final[dict[Format, Callable[[str, Sequence[Change]], str]]] = {
    "toml": _edit_toml,
    "json": _edit_json,
    "jsonc": _edit_jsonc,
    "yaml": _edit_yaml,
}
