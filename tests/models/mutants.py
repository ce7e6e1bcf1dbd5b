"""Model files with one thing changed at random, by a seed: bytes, lengths, figures, types, cuts, links, pipes."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demo
from tests.models import canary_p

FIGURES = (0, 1, -1, 2, 3, 7, 255, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *FIGURES, 10**30, -(2**31), 0.5, -0.0, 1e308, float("nan"), float("inf"), None, True, False, "", "x", "7", "\0", [],
    [0], [[]], ["x"], {}, {"x": 1}, "a" * 5000, "../../etc/passwd", "/dev/zero",
)  # fmt: skip
NAMED = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja", "modules.json", "config_sentence_transformers.json", "model.safetensors.index.json",
    "special_tokens_map.json", "added_tokens.json", "adapter_config.json", "adapter_model.safetensors", "vocab.json",
    "merges.txt", "tokenizer.model", "preprocessor_config.json", "chat_template.json", "1_Pooling",
)  # fmt: skip
TEMPLATES = (
    "{{ (7)|round(-100000000) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "{{ messages[9].content }}",
    "{% for %}",
    "{{ 'x'.ljust(3000000000) }}",
    "",
)
NORMALIZERS: tuple[Any, ...] = (
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 40},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 2**16}] * 20},
    {"type": "Replace", "pattern": {"Regex": "(a*)*$"}, "content": "aa"},
    {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 500},
    {"type": "Unknown"},
)
GGUF_KINDS = ("flip", "flip", "byte", "length", "figure", "figure", "figure", "token", "cut", "special", "swap")
FOLDER_KINDS = (*("figure", "entry", "special") * 2, "figure", "tensors", "bytes", "cut", "bomb")
SPECIAL = ("pipe", "folder", "zero", "random", "kernel", "kmsg", "circle", "nowhere", "empty", "sparse", "zeros")
MORE_KEYS = (
    "num_labels", "quantization_config", "auto_map", "text_config", "num_experts", "id2label", "rope_scaling",
    "rope_parameters", "layer_types", "sliding_window",
)  # fmt: skip
Rolls = random.Random


def gguf(rolls: Rolls, place: Path) -> str:
    """Write a damaged GGUF; what was done to it."""
    raw = bytearray(rolls.choice(_GGUFS)())
    header = min(len(raw), 1 << 17)
    kind = rolls.choice(GGUF_KINDS)
    match kind:
        case "flip":
            for _ in range(rolls.choice((1, 1, 2, 8))):
                raw[rolls.randrange(header)] ^= 1 << rolls.randrange(8)
        case "byte":
            raw[rolls.randrange(len(raw))] = rolls.randrange(256)
        case "length":
            struct.pack_into("<Q", raw, rolls.randrange(header - 8), rolls.choice(FIGURES) % 2**64)
        case "figure":
            keys = [m.end() for m in re.finditer(rb"[a-z]\.(?:\w+\.)*\w+(?=[\x04\x05\x06\x0a]\0\0\0)", raw[:header])]
            at = rolls.choice(keys)
            size = 8 if raw[at] == 10 else 4
            raw[at + 4 : at + 4 + size] = (rolls.choice(FIGURES) % 2 ** (8 * size)).to_bytes(size, "little")
            kind += f" at {at}"
        case "token":
            tokens = raw.find(b"tokenizer.ggml.tokens")
            at = tokens + 40 + rolls.randrange(max(1, min(20_000, header - tokens - 60)))
            raw[at] = rolls.randrange(256)
        case "cut":
            del raw[rolls.choice((rolls.randrange(len(raw)), rolls.randrange(header), rolls.randrange(64))) :]
        case "swap":
            a, b, n = rolls.randrange(header - 64), rolls.randrange(header - 64), rolls.randrange(1, 64)
            raw[a : a + n], raw[b : b + n] = raw[b : b + n], raw[a : a + n]
        case "special":
            return _special(rolls, place)
    place.write_bytes(raw)
    return kind


def folder(rolls: Rolls, place: Path) -> str:
    """Write a damaged folder; what was done to it."""
    shutil.copytree(demo.HF_PATH, place)
    kind = rolls.choice(FOLDER_KINDS)
    match kind:
        case "figure":
            config = json.loads((place / "config.json").read_text())
            key = rolls.choice([*config, *MORE_KEYS])
            config[key] = rolls.choice(VALUES)
            (place / "config.json").write_text(json.dumps(config))
            return f"config.{key} = {str(config[key])[:40]}"
        case "entry":
            name = rolls.choice(("tokenizer.json", "tokenizer_config.json", "generation_config.json"))
            document = json.loads((place / name).read_text())
            told = _change(rolls, document)
            (place / name).write_text(json.dumps(document))
            return f"{name} {told}"
        case "special":
            name = rolls.choice(NAMED)
            target = place / name
            target.unlink(missing_ok=True)
            return f"{name} {_special(rolls, target)}"
        case "tensors":
            raw = bytearray((place / "model.safetensors").read_bytes())
            length = int.from_bytes(raw[:8], "little")
            if rolls.random() < 0.3:
                struct.pack_into("<Q", raw, 0, rolls.choice(FIGURES) % 2**64)
            else:
                header = json.loads(raw[8 : 8 + length])
                told = _change(rolls, header)
                made = json.dumps(header).encode()
                raw = bytearray(struct.pack("<Q", len(made)) + made + raw[8 + length :])
                kind += f" {told}"
            (place / "model.safetensors").write_bytes(raw)
        case "bytes":
            name = rolls.choice([file.name for file in sorted(place.iterdir())])
            raw = bytearray((place / name).read_bytes())
            for _ in range(rolls.choice((1, 4, 32))):
                raw[rolls.randrange(min(len(raw), 1 << 16))] = rolls.randrange(256)
            (place / name).write_bytes(raw)
            kind += f" of {name}"
        case "cut":
            name = rolls.choice([file.name for file in sorted(place.iterdir())])
            os.truncate(place / name, rolls.randrange((place / name).stat().st_size))
            kind += f" of {name}"
        case "bomb":
            if rolls.random() < 0.5:
                (place / "chat_template.jinja").write_text(rolls.choice(TEMPLATES))
            else:
                document = json.loads((place / "tokenizer.json").read_text())
                document["normalizer"] = rolls.choice(NORMALIZERS)
                (place / "tokenizer.json").write_text(json.dumps(document))
    return kind


KINDS: dict[str, Callable[[Rolls, Path], str]] = {"gguf": gguf, "folder": folder}


def _special(rolls: Rolls, place: Path) -> str:
    """Something in a file's place that is none."""
    kind = rolls.choice(SPECIAL)
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "empty":
            place.touch()
        case "zeros":
            place.write_bytes(bytes(4096))
        case "sparse":
            place.touch()
            os.truncate(place, 2**36)
        case _:
            targets = {"zero": "/dev/zero", "random": "/dev/urandom", "kernel": "/proc/self/maps", "kmsg": "/proc/kmsg",
                       "circle": place.name, "nowhere": "not-there"}  # fmt: skip
            place.symlink_to(targets[kind])
    return kind


def _change(rolls: Rolls, document: Any) -> str:
    """One value somewhere in a document; where, and to what."""
    at: Any = document
    path: list[str] = []
    while True:
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return "nothing"
        key = rolls.choice(keys)
        path.append(str(key))
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rolls.random() < 0.8:
            at = inner
            continue
        at[key] = rolls.choice(VALUES)
        return f"{'.'.join(path)[:60]} = {str(at[key])[:40]}"


def _demo_gguf() -> bytes:
    return demo.GGUF_PATH.read_bytes()


@functools.cache
def _canary_gguf() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return canary_p.build(Path(place) / "x.gguf").read_bytes()


_GGUFS = (_demo_gguf, _canary_gguf)
