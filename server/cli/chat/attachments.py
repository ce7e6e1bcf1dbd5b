"""Files that go with a question: texts as text, images as the parts that OpenAI's clients send."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from server.cli.chat.files import read_file
from server.cli.console import CliError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path

MOST_TEXT_BYTES: Final = 1 << 20
MOST_IMAGE_BYTES: Final = 20 << 20
_IMAGES: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)
"""How files of each type begin, of those that OpenAI's models take."""


@dataclass
class Attachments:
    """What goes with the next question."""

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """`data:` URLs."""

    def add_text(self, path: Path) -> str:
        """Take a text file; what it was, for the user. Raises CliError and OSError."""
        data = read_file(path, most_bytes=MOST_TEXT_BYTES)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise CliError(f"{path} is no text in UTF-8. hint: /image takes images", ExitCode.USAGE) from None
        if "\0" in text:
            raise CliError(f"{path} is no text: it holds null bytes", ExitCode.USAGE)
        runs = re.findall(r"`{3,}", text)
        fence = "`" * (1 + max((len(run) for run in runs), default=2))
        self.texts.append(f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}")
        return f"{path.name}: {len(text):,} characters, {len(text.splitlines()):,} lines"

    def add_image(self, path: Path) -> str:
        """Take an image; what it was, for the user. Raises CliError and OSError."""
        data = read_file(path, most_bytes=MOST_IMAGE_BYTES)
        kind = next((kind for begin, kind in _IMAGES if begin.match(data)), None)
        if kind is None:
            raise CliError(f"{path} is no image. hint: PNG, JPEG, GIF and WebP are", ExitCode.USAGE)
        self.images.append(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")
        return f"{path.name}: {kind}, {max(1, len(data) >> 10):,} KiB"

    def taken(self, question: str) -> str | list[dict[str, Any]]:
        """The content of a question with all of them, which are forgotten here."""
        text = "\n\n".join([*self.texts, *([question] if question else [])])
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        self.clear()
        if not images:
            return text
        return [*([{"type": "text", "text": text}] if text else []), *images]

    def clear(self) -> None:
        """Send none of them."""
        self.texts, self.images = [], []

    def __bool__(self) -> bool:
        return bool(self.texts or self.images)
