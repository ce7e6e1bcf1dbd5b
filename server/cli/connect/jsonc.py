"""JSON with comments, changed at one place: every byte that is not part of the change stays as it is.

Editors keep their settings in such files. No well-kept Python library edits them without writing them anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE: Final = re.compile(r"[ \t\r\n]+")
_COMMENT: Final = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_SCALAR: Final = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_REST_OF_LINE: Final = re.compile(r"(?:[ \t]|/\*[^\n]*?\*/)*(?://[^\n\r]*)?")
_DEEPEST: Final = 100


class JsonError(ValueError):
    """The text is no JSON, or not of the shape that a change needs; the message says where."""


@dataclass
class Node:
    """A value and where it stands in the text."""

    start: int
    end: int
    value: Any
    members: dict[str, Node] = field(default_factory=dict)
    """Of an object, by key; of a key that is there twice the last, as readers take it."""
    items: list[Node] = field(default_factory=list)
    """Of an array."""
    comma: int | None = None
    """Behind a trailing comma, where there is one."""

    @property
    def children(self) -> list[Node]:
        """Members or items, as they follow each other."""
        return sorted([*self.members.values(), *self.items], key=lambda node: node.start)


class _Reader:
    def __init__(self, text: str, *, comments: bool) -> None:
        self.text = text
        self.at = 0
        self.comments = comments

    def whole(self) -> Node:
        self.skip()
        node = self.value(0)
        self.skip()
        if self.at < len(self.text):
            raise self.wrong("something follows the end")
        return node

    def wrong(self, what: str) -> JsonError:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        return JsonError(f"line {line}, column {column}: {what}")

    def skip(self) -> None:
        while True:
            match = _SPACE.match(self.text, self.at)
            if match is None and self.text[self.at : self.at + 1] == "/":
                match = _COMMENT.match(self.text, self.at)
                if match is not None and not self.comments:
                    raise self.wrong("a comment, which this file may not hold")
            if match is None:
                return
            self.at = match.end()

    def value(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise self.wrong("it is nested too deeply")
        start, first = self.at, self.text[self.at : self.at + 1]
        if first == "{":
            return self.container(depth, "}")
        if first == "[":
            return self.container(depth, "]")
        if first == '"':
            said = self.string()
            return Node(start, self.at, said)
        match = _SCALAR.match(self.text, self.at)
        if match is None:
            raise self.wrong("a value is missing")
        self.at = match.end()
        return Node(start, self.at, json.loads(match[0]))

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self.wrong("a text does not end, or a key is missing its quotes")
        try:
            said = str(json.loads(match[0]))
        except ValueError:
            raise self.wrong("a text holds an escape that is none") from None
        self.at = match.end()
        return said

    def container(self, depth: int, closing: str) -> Node:
        node = Node(self.at, self.at, {} if closing == "}" else [])
        self.at += 1
        self.skip()
        while self.text[self.at : self.at + 1] != closing:
            if node.children and node.comma is None:
                raise self.wrong(f"a comma or {closing} is missing")
            node.comma = None
            if closing == "}":
                key = self.string()
                self.skip()
                self.take(":")
                self.skip()
                node.members[key] = child = self.value(depth + 1)
                node.value[key] = child.value
            else:
                node.items.append(self.value(depth + 1))
                node.value.append(node.items[-1].value)
            self.skip()
            if self.text[self.at : self.at + 1] == ",":
                self.at += 1
                node.comma = self.at
                self.skip()
        if node.comma is not None and not self.comments:
            raise self.wrong("a comma before the end")
        self.at += 1
        node.end = self.at
        return node

    def take(self, char: str) -> None:
        if self.text[self.at : self.at + 1] != char:
            raise self.wrong(f"{char} is missing")
        self.at += 1


def read(text: str, *, comments: bool) -> Node:
    """The text's one value. Raises JsonError."""
    return _Reader(text, comments=comments).whole()


def says_something(text: str) -> bool:
    """Whether there is anything beside space and comments."""
    reader = _Reader(text, comments=True)
    reader.skip()
    return reader.at < len(text)


def put(text: str, path: Sequence[str], value: Any, *, comments: bool) -> str:
    """The text with a value at a path of keys; objects are made where none or null is on the way. Raises JsonError."""
    node, rest = read(text, comments=comments), list(path)
    while rest and rest[0] in node.members:
        node = node.members[rest.pop(0)]
    if not rest:
        return _spliced(text, node.start, node.end, _written(value, _indent_at(text, node.start), text))
    for key in reversed(rest[1:]):
        value = {key: value}
    if node.value is None and len(rest) < len(path):
        return _spliced(text, node.start, node.end, _written({rest[0]: value}, _indent_at(text, node.start), text))
    if not isinstance(node.value, dict):
        raise JsonError(f"'{'.'.join(path[: len(path) - len(rest)])}' holds no object")
    return _added(text, node, value, key=rest[0])


def put_items(text: str, path: Sequence[str], keep: Sequence[bool], items: Sequence[Any], *, comments: bool) -> str:
    """The text with an array's items dropped that are not kept, and others behind them. Raises JsonError."""
    for index in reversed([index for index, stays in enumerate(keep) if not stays]):
        text = _without(text, _at(text, path, comments=comments), index)
    for item in items:
        text = _added(text, _at(text, path, comments=comments), item)
    return text


def _at(text: str, path: Sequence[str], *, comments: bool) -> Node:
    node = read(text, comments=comments)
    for key in path:
        node = node.members[key]
    return node


def _without(text: str, array: Node, index: int) -> str:
    """Cut from the item before to the end of this one, or of the first to the start of the next."""
    items = array.items
    if index > 0:
        return _spliced(text, items[index - 1].end, items[index].end, "")
    if len(items) > 1:
        return _spliced(text, items[0].start, items[1].start, "")
    return _spliced(text, items[0].start, array.comma or items[0].end, "")


def _added(text: str, node: Node, value: Any, *, key: str | None = None) -> str:
    """A member or an item behind the last one, written as the others are."""
    outer = _indent_at(text, node.start)
    name = "" if key is None else f"{json.dumps(key, ensure_ascii=False)}: "
    last = node.children[-1] if node.children else None
    if last is not None and "\n" not in text[node.start : last.start]:  # all on one line
        comma = "" if node.comma is not None else ","
        flat = json.dumps(value, ensure_ascii=False)
        return _spliced(text, node.comma or last.end, node.comma or last.end, f"{comma} {name}{flat}")
    indent = outer + _step(text) if last is None else _indent_at(text, last.start)
    line = _newline(text) + indent + name + _written(value, indent, text)
    if last is None:
        inside = text[node.start + 1 : node.end - 1]
        tail = "" if "\n" in inside else _newline(text) + outer
        return _spliced(text, node.start + 1, node.start + 1, line + tail)
    behind = node.comma or last.end
    match = _REST_OF_LINE.match(text, behind)
    end_of_line = match.end() if match is not None and text[match.end() : match.end() + 1] in ("\n", "\r") else behind
    end_of_line = min(end_of_line, node.end - 1)
    text = _spliced(text, end_of_line, end_of_line, line)
    return text if node.comma is not None else _spliced(text, last.end, last.end, ",")


def _spliced(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _written(value: Any, indent: str, text: str) -> str:
    lines = json.dumps(value, indent=_step(text), ensure_ascii=False).split("\n")
    return f"{_newline(text)}{indent}".join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _step(text: str) -> str:
    """What one level is indented by."""
    match = re.search(r"\n([ \t]+)[\"{\[]", text)
    return match[1] if match is not None else "  "


def _indent_at(text: str, place: int) -> str:
    start = text.rfind("\n", 0, place) + 1
    match = re.compile(r"[ \t]*").match(text, start)
    return match[0] if match is not None else ""
