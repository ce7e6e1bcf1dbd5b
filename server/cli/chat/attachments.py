"""Files that go with a question: texts as text, images and sounds as the parts that OpenAI's clients send."""

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
MOST_SOUND_BYTES: Final = 20 << 20
_IMAGES: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)
"""How files of each type begin, of those that OpenAI's models take."""
_SOUNDS: Final = (
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "wav"),
    (re.compile(rb"ID3|\xff[\xe2-\xfb]"), "mp3"),
    (re.compile(rb"fLaC"), "flac"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"....ftyp", re.DOTALL), "m4a"),
    (re.compile(rb"\x1aE\xdf\xa3"), "webm"),
)
"""The same of sounds; OpenAI's models take the first two."""


@dataclass
class Attachments:
    """What goes with the next question."""

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """`data:` URLs."""
    sounds: list[dict[str, str]] = field(default_factory=list)
    """Data in base64, and its format."""

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

    def add_sound(self, path: Path) -> str:
        """Take a sound; what it was, for the user. Raises CliError and OSError."""
        data = read_file(path, most_bytes=MOST_SOUND_BYTES)
        kind = next((kind for begin, kind in _SOUNDS if begin.match(data)), None)
        if kind is None:
            raise CliError(f"{path} is no sound. hint: WAV, MP3, FLAC, Ogg, M4A and WebM are", ExitCode.USAGE)
        self.sounds.append({"data": base64.b64encode(data).decode("ascii"), "format": kind})
        return f"{path.name}: {kind}, {max(1, len(data) >> 10):,} KiB"

    def taken(self, question: str) -> str | list[dict[str, Any]]:
        """The content of a question with all of them, which are forgotten here."""
        text = "\n\n".join([*self.texts, *([question] if question else [])])
        media: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        media += [{"type": "input_audio", "input_audio": sound} for sound in self.sounds]
        self.clear()
        if not media:
            return text
        return [*([{"type": "text", "text": text}] if text else []), *media]

    def clear(self) -> None:
        """Send none of them."""
        self.texts, self.images, self.sounds = [], [], []

    def __bool__(self) -> bool:
        return bool(self.texts or self.images or self.sounds)
