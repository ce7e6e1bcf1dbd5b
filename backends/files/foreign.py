"""What a file is by its first bytes, whatever it is called: GGUF, or a sentence that says what else and what to do.

The bytes are given by the code that opened the file; nothing is opened here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Final

PROBE_BYTES: Final = 512
"""So many bytes from the start are enough."""
MAGIC: Final = b"GGUF"
_MOST_REMARKS: Final = 16
_MOST_CHARS: Final = 400
_UNFINISHED: Final = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_AGAIN: Final = "hint: download it again"
_FOLDER: Final = "hint: name the folder that holds it beside config.json"
_ARCHIVES: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"Rar!", "rar"),
)
_NO_MODELS: Final = (
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"RIFF", "a sound, a picture or a film (RIFF)"),
    (b"\x7fELF", "a program or a library"),
    (b"MZ", "a program or a library"),
    (b"SQLite format 3", "a database (SQLite)"),
)
_OLD_GGML: Final = (b"tjgg", b"fmgg", b"lmgg", b"ggjt", b"ggmf", b"ggml", b"algg", b"ggla")
_JSON: Final = re.compile(r"""\{\s*(["}]|$)|\[\s*(["{\]\d-]|\[\s*["{\d-]|(true|false|null)\b|$)""")
_TABLE: Final = re.compile(r"""\[{1,2}\s*["'\w][^\[\]]*\]{1,2}\s*(#.*)?$""")
_SETTING: Final = re.compile(r"""["'\w][\w."' -]*\s*=\s*\S""")
_OLLAMA: Final = re.compile(r"FROM\s+\S", re.IGNORECASE)
_WHISPER_TOKENS: Final = range(51_800, 52_000)
_TENSORS: Final = "the weights of a model folder"


def is_gguf(start: bytes) -> bool:
    """By its magic."""
    return start.startswith(MAGIC)


def is_unfinished(name: str) -> bool:
    """A name that programs give to downloads under way."""
    return name.lower().endswith(_UNFINISHED)


def known(start: bytes, size: int) -> str | None:
    """What a file is that is no model, and what to do: `it is ... hint: ...`; None where its bytes do not tell."""
    if size == 0:
        return f"it is empty (0 bytes). {_AGAIN}"
    for found in (_pointer(start), _text(start), _weights(start, size), _container(start)):
        if found is not None:
            return found
    if not start.strip(b"\0"):
        return f"it begins with zeros, as a download does that reserved its space and was interrupted. {_AGAIN}"
    if _printable(start):
        return "it is text. hint: give a GGUF file or a folder that holds config.json"
    return None


def told(start: bytes, size: int) -> str:
    """The same of a file that is no GGUF model, whatever it is."""
    if (found := known(start, size)) is not None:
        return found
    if size < 24:
        return f"it has {size} bytes, too few for a model. {_AGAIN}"
    return (
        f"its first four bytes are {start[:4].hex(' ')} and not 'GGUF'. "
        "hint: give a GGUF file or a folder that holds config.json"
    )


def no_safetensors(start: bytes, size: int) -> str:
    """The same of a file that should hold a folder's weights."""
    return known(start, size) or f"it is cut or no safetensors. {_AGAIN}"


def plain(remarks: Iterable[str]) -> tuple[str, ...]:
    """Sentences that hold a stranger's names, as a terminal and a log may show them: printable, and not without end."""
    first = list(itertools.islice(remarks, _MOST_REMARKS))
    return tuple("".join(sign if sign.isprintable() else "?" for sign in text[:_MOST_CHARS]) for text in first)


def _pointer(start: bytes) -> str | None:
    if not start.startswith(b"version https://git-lfs"):
        return None
    stated = re.search(rb"\nsize (\d{1,15})\n", start)
    of = f" to a file of {int(stated[1])} bytes" if stated else ""
    return f"it is a git LFS pointer{of}, not the file itself. hint: run `git lfs pull` in its folder"


def _text(start: bytes) -> str | None:
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return (
            "it is a web page or an error message (HTML or XML), which a server sent instead of the file. "
            "hint: download it again from the address of the file itself, with a token where the repository wants one"
        )
    if _printable(start) and (told := _known_text(start.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "ignore"))):
        return told
    if head.startswith((b"entry not found", b"not found", b"invalid username", b"access to model", b"unauthorized")):
        return f"it is an error message that a server sent instead of the file. {_AGAIN}"
    return None


def _known_text(text: str) -> str | None:
    """What a text is by its first lines that mean something."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(("#", "//", ";"))]
    first = lines[0] if lines else ""
    if _JSON.match("\n".join(lines)):
        return "it is JSON, perhaps an error message that a server sent instead of the file. " + _AGAIN
    if _OLLAMA.match(first):
        return "it is a Modelfile, which names a model and is none itself. hint: give the GGUF file of its FROM line"
    if _TABLE.match(first) or _SETTING.match(first):
        return (
            "it is a configuration file (TOML, INI or the like) and no model. "
            "hint: onecard reads its own with --config FILE; give a GGUF file or a folder that holds config.json"
        )
    return None


def _weights(start: bytes, size: int) -> str | None:
    if len(start) > 8 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size:
        return f"it is a safetensors file: {_TENSORS}. {_FOLDER}"
    if start.startswith(b"PK\x03\x04"):
        if b"data.pkl" in start or b"/version" in start:
            return (
                f"it is a PyTorch file (pickled in a zip): {_TENSORS}, which can run code when they are read. "
                "hint: take the model's safetensors or a GGUF file"
            )
        return "it is a zip archive. hint: unpack it, and name what is in it"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return (
            f"it is a pickle: {_TENSORS}, which can run code when they are read. "
            "hint: take the model's safetensors or a GGUF file"
        )
    if start.startswith(b"lmgg") and int.from_bytes(start[4:8], "little") in _WHISPER_TOKENS:
        return "it is a Whisper model of whisper.cpp, which turns speech into text. hint: onecard serves models of text"
    if start.startswith(_OLD_GGML):
        return (
            "it is a GGML file: of another program than llama.cpp, or from before GGUF (August 2023), which llama.cpp "
            "reads no more. hint: take a GGUF file of the model"
        )
    return None


def _container(start: bytes) -> str | None:
    for magic, name in _ARCHIVES:
        if start.startswith(magic):
            return f"it is an archive ({name}). hint: unpack it, and name what is in it"
    if start[257:262] == b"ustar":
        return "it is an archive (tar). hint: unpack it, and name what is in it"
    others = (
        (start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x1a", b":"), "ONNX"),
        (start.startswith(b"\x89HDF"), "HDF5 (Keras)"),
        (start[4:8] == b"TFL3", "TensorFlow Lite"),
        (start.startswith(b"\x93NUMPY"), "NumPy"),
    )
    for is_it, name in others:
        if is_it:
            return f"it is a file of {name}, which onecard does not run. hint: take GGUF or safetensors of the model"
    for magic, name in _NO_MODELS:
        if start.startswith(magic):
            return f"it is {name} and no model. hint: give a GGUF file or a folder that holds config.json"
    return None


def _printable(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return False
        text = start[: error.start].decode("utf-8")
    return all(sign.isprintable() or sign in "\r\n\t" for sign in text)
