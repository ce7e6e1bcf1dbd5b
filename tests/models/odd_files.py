"""Files that people take for a model and that are none, and vocabularies llama.cpp aborts on; with what is said."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from tests.models import broken, shapes
from tests.models.bytebpe import byte_spelling

SMALL = replace(shapes.LLAMA, n_layers=1, n_vocab=320)


def _zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "x" * 99)
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"it is empty \(0 bytes\). hint: download it again"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4920734176\n",
        r"git LFS pointer to a file of 4920734176 bytes.* hint: run `git lfs pull`",
    ),
    "html": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page or an error message"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page or an error message"),
    "json": (b'{"error":"Repository not found"}', "it is JSON, perhaps an error message"),
    "json list": (b'[\n  {"error": "gone"}]', "it is JSON, perhaps an error message"),
    "toml": (
        b"# mine\n[server]\nport = 8080\n",
        r"a configuration file \(TOML, INI or the like\) and no model. hint: ",
    ),
    "toml without a table": (b'model = "x.gguf"\n', "a configuration file"),
    "toml tables": (b'[[models]]\nname = "a"\n', "a configuration file"),
    "toml of a dotted name": (b'[models."a.b"]  # mine\npath = "x"\n', "a configuration file"),
    "ini": (b"; mine\n[section]\nkey = 1\n", "a configuration file"),
    "modelfile": (b"# mine\nFROM ./model.gguf\nTEMPLATE x\n", "a Modelfile, .* hint: give the GGUF file of its FROM"),
    "readme": (b"# A model\n\nIt answers, and [this](x) tells how.\n", "it is text. hint: give a GGUF file"),
    "yaml": (b"models:\n  - name: a\n", "it is text. hint: give a GGUF file"),
    "whisper": (
        b"lmgg" + b"".join(n.to_bytes(4, "little") for n in (51865, 1500, 512, 8, 6, 448)) + bytes(40),
        "a Whisper model of whisper.cpp, which turns speech into text. hint: ",
    ),
    "pdf": (b"%PDF-1.7\n" + bytes(60), "a PDF document and no model. hint: "),
    "program": (b"\x7fELF" + bytes(60), "a program or a library and no model. hint: "),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), r"a picture \(PNG\) and no model. hint: "),
    "words": (b"Entry not found", "an error message that a server sent"),
    "safetensors": ((42).to_bytes(8, "little") + b'{"__metadata__":{}}'.ljust(60), "a safetensors file.* hint: name"),
    "pytorch": (_zip("archive/data.pkl"), "a PyTorch file .*can run code"),
    "zip": (_zip("model.gguf"), "a zip archive. hint: unpack"),
    "pickle": (pickle.dumps({"weights": [1.0] * 20}), "it is a pickle: .*can run code"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), r"archive \(gzip\)"),
    "tar": (b"model.gguf".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"), r"archive \(tar\)"),
    "ggml": (b"tjgg" + bytes(60), "before GGUF"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + bytes(60), "file of ONNX"),
    "zeros": (bytes(4096), "begins with zeros, as a download does"),
    "noise": (b"\xde\xad\xbe\xef" * 32, "first four bytes are de ad be ef"),
}
"""First bytes -> what is said of them."""


KEYS = {
    "model": gguf.Keys.Tokenizer.MODEL,
    "pre": gguf.Keys.Tokenizer.PRE,
    "tokens": gguf.Keys.Tokenizer.LIST,
    "types": gguf.Keys.Tokenizer.TOKEN_TYPE,
    "merges": gguf.Keys.Tokenizer.MERGES,
    "scores": gguf.Keys.Tokenizer.SCORES,
}


def build(
    path: Path,
    *,
    keys: dict[str, str] | None = None,
    arch: str = "llama",
    weights: bool = True,
    **vocabulary: Any,
) -> Path:
    """A small model with one thing changed; the vocabulary is byte-level BPE unless it says otherwise."""
    letters = byte_spelling()
    found: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*letters, *(f"word{i}" for i in range(64))],
        "types": [1] * 320,
        "merges": [f"{letters[65]} {letters[66]}"],
        "scores": None,
    } | vocabulary
    writer = gguf.GGUFWriter(path, arch)
    shapes._metadata(writer, SMALL)
    for key, value in (keys or {}).items():
        writer.add_string(key, value)
    if (absent := found.get("without")) is not None:
        del writer.kv_data[0][absent]
    if (size := found.get("embedding")) is not None:
        del writer.kv_data[0]["llama.embedding_length"]
        writer.add_string("llama.embedding_length", size)
    for name, key in KEYS.items():
        match found[name]:
            case None:
                pass
            case list() as values:
                writer.add_array(key, values)
            case int() as number:
                writer.add_uint32(key, number)
            case value:
                writer.add_string(key, value)
    writer.add_bos_token_id(found.get("bos", 0))
    writer.add_eos_token_id(1)
    for name, dims in shapes.tensors(SMALL).items() if weights else ():
        shapes._add(writer, name, dims, "F32" if len(dims) == 1 else "F16")
    shapes.finish(writer)
    return path


def _tokens(*last: str) -> list[str]:
    return [*byte_spelling(), *(f"word{i}" for i in range(64 - len(last))), *last]


def _empty_vocabulary(path: Path) -> Path:
    tokens = KEYS["tokens"].encode()
    raw = broken.VALID.without(tokens).with_pairs(broken.array(tokens, broken.STRING, 0, b""))
    path.write_bytes(raw.encode())
    return path


UNSERVABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "adapter": (lambda p: build(p, keys={"general.type": "adapter", "adapter.type": "lora"}), "is a LoRA adapter"),
    "projector": (lambda p: build(p, arch="clip", keys={"general.type": "mmproj"}), "is a projector for images"),
    "old projector": (lambda p: build(p, arch="clip"), "is a projector for images"),
    "imatrix": (lambda p: build(p, keys={"general.type": "imatrix"}), "is an importance matrix"),
    "vocabulary": (lambda p: build(p, weights=False), "holds a vocabulary and no weights"),
    "no tokenizer": (lambda p: build(p, model="no_vocab", merges=None), "has no tokenizer"),
    "pictures": (lambda p: build(p, arch="flux"), "makes pictures"),
    "two parts": (lambda p: build(p, arch="t5"), "is a t5 model, which is of no kind"),
    "duplicate": (lambda p: build(p, tokens=_tokens("word0")), "two tokens of the vocabulary are alike: 'word0'"),
    "empty name": (lambda p: build(p, tokens=_tokens("", "[EMPTY_318]")), r"alike: '\[EMPTY_318\]'"),
    "no merges": (lambda p: build(p, merges=None), "the file has no merges"),
    "few types": (lambda p: build(p, types=[1] * 10), "320 tokens and 10 types"),
    "few scores": (lambda p: build(p, scores=[0.0] * 10), "320 tokens and 10 scores"),
    "no bytes": (lambda p: build(p, model="llama"), "no token for the byte 0x00"),
    "no merges of gemma4": (lambda p: build(p, model="gemma4", pre="kimi-k2", merges=None), "has no merges"),
    "unknown architecture": (
        lambda p: build(p, arch="warp-drive"),
        "the architecture 'warp-drive', which llama.cpp in llama-cpp-python .* does not know. hint: ",
    ),
    "an old converter's name": (lambda p: build(p, arch="LLaMA"), "the architecture 'LLaMA', which llama.cpp"),
    "parts of a projector": (lambda p: build(p, arch="siglip", keys={"clip.use_gelu": "yes"}), "projector for images"),
    "speech": (lambda p: build(p, arch="whisper"), r"a model that hears or speaks \(whisper\). hint: onecard serves"),
    "voices": (lambda p: build(p, arch="pockettts"), "a model that hears or speaks"),
    "drafts": (lambda p: build(p, arch="eagle3"), r"drafts tokens for another model \(eagle3\).* hint: name that"),
    "unknown pre-tokenizer": (
        lambda p: build(p, pre="warp"),
        r"the pre-tokenizer 'warp' \(tokenizer.ggml.pre\), which llama.cpp .* does not know. hint: ",
    ),
    "unknown tokenizer": (lambda p: build(p, model="warp"), r"the tokenizer 'warp' \(tokenizer.ggml.model\), which"),
    "tokenizer that is a number": (lambda p: build(p, model=7), r"the tokenizer 7 \(tokenizer.ggml.model\), which"),
    "tokenizer that is not named": (lambda p: build(p, model=None), "has no tokenizer, so the model cannot read text"),
    "empty vocabulary": (lambda p: _empty_vocabulary(p), "a tokenizer without a single token"),
    "no vocabulary": (lambda p: build(p, tokens=None, types=None), "a tokenizer without a single token"),
    "tokens that are numbers": (lambda p: build(p, tokens=[1, 2, 3]), "tokens is no list of texts"),
    "tokens that are no list": (lambda p: build(p, tokens="abc"), "tokens is no list of texts"),
    "types that are texts": (lambda p: build(p, types=["a"] * 320), "token_type is no list of int32"),
    "merges that are numbers": (lambda p: build(p, merges=[1, 2]), "merges is no list of texts"),
    "scores that are texts": (lambda p: build(p, scores=["a"] * 320), "scores is no list of float32"),
    "no context length": (lambda p: build(p, without="llama.context_length"), "not say llama.context_length, without"),
    "no layers' number": (lambda p: build(p, without="llama.block_count"), "not say llama.block_count, without"),
    "a size as text": (lambda p: build(p, embedding="many"), "does not say llama.embedding_length"),
    "no byte": (lambda p: build(p, types=[6] * 320), "is marked as a byte and is none"),
}
"""What to write -> what is said of it."""

ODD_BUT_FINE: dict[str, Callable[[Path], Path]] = {
    "empty names": lambda p: build(p, tokens=_tokens("", "")),
    "long types": lambda p: build(p, types=[1] * 1000),
    "a special token beyond the vocabulary": lambda p: build(p, bos=2**31),
    "a long token of the user's": lambda p: build(p, tokens=_tokens("x" * 2000), types=[1] * 319 + [4]),
    "letters that are control tokens": lambda p: build(p, types=[3] * 256 + [1] * 64),
    "unknown types": lambda p: build(p, types=[99] * 320),
    "odd merges": lambda p: build(p, merges=["ab", "", "  ", "a b c", "zz yy"]),
}
"""Loads and reads text."""
