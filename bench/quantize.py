"""`python -m bench.quantize`: peak memory and speed of a conversion, beside a plain copy with the same cast.

Makes a Llama-shaped folder of random BF16 weights (default 1.5 GB), converts it in a child process that measures its
own peak, and reads, casts and writes the same bytes without any of the converter's work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from demo import HF_PATH

HIDDEN, FEED, HEADS, ROW_BYTES = 2048, 5632, 32, 2**20
_CHILD = """
import re, sys, time
from pathlib import Path
from quantize.hf.convert import make_plan, write_plan
from quantize.hf.source import opened
from quantize.hf.tensor import Dtype
from backends.files.whole import sync
with opened(Path(sys.argv[1])) as source:
    plan = make_plan(source, Dtype[sys.argv[3]])
    began = time.perf_counter()
    write_plan(plan, Path(sys.argv[2]))
    sync(Path(sys.argv[2]))
    seconds = time.perf_counter() - began
peak = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(seconds, peak)
"""


def main() -> None:
    """Print one JSON line per type."""
    parser = argparse.ArgumentParser(prog="python -m bench.quantize", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source = Path(name) / "model"
        n_bytes = make_model(source, arguments.gigabytes)
        for dtype in ("BF16", "F16"):
            target = Path(name) / "out.gguf"
            command = [sys.executable, "-c", _CHILD, str(source), str(target), dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, peak = (float(part) for part in done.stdout.split())
            target.unlink()
            plain = min(plain_copy(source / "model.safetensors", target, to_f16=dtype == "F16") for _ in range(2))
            figures = {
                "type": dtype,
                "source_bytes": n_bytes,
                "seconds": round(seconds, 2),
                "bytes_per_s": round(n_bytes / seconds),
                "plain_seconds": round(plain, 2),
                "ratio": round(seconds / plain, 2),
                "peak_bytes": int(peak),
            }
            sys.stdout.write(json.dumps(figures) + "\n")


def make_model(folder: Path, gigabytes: float) -> int:
    """A folder of about that size; its bytes."""
    layer = [
        ("self_attn.q_proj.weight", (HIDDEN, HIDDEN)),
        ("self_attn.k_proj.weight", (HIDDEN, HIDDEN)),
        ("self_attn.v_proj.weight", (HIDDEN, HIDDEN)),
        ("self_attn.o_proj.weight", (HIDDEN, HIDDEN)),
        ("mlp.gate_proj.weight", (FEED, HIDDEN)),
        ("mlp.up_proj.weight", (FEED, HIDDEN)),
        ("mlp.down_proj.weight", (HIDDEN, FEED)),
        ("input_layernorm.weight", (HIDDEN,)),
        ("post_attention_layernorm.weight", (HIDDEN,)),
    ]
    per_layer = 2 * sum(math.prod(shape) for _, shape in layer)
    n_layers = max(1, round(gigabytes * 1e9 / per_layer))
    tensors = [(f"model.layers.{i}.{name}", shape) for i in range(n_layers) for name, shape in layer]
    tensors += [("model.embed_tokens.weight", (1024, HIDDEN)), ("model.norm.weight", (HIDDEN,))]
    header, at = {}, 0
    for name, shape in tensors:
        n = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    folder.mkdir()
    for file in HF_PATH.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((HF_PATH / "config.json").read_text())
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": FEED,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
    }
    changed = config | sizes | {"head_dim": HIDDEN // HEADS, "num_hidden_layers": n_layers, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(changed))
    raw = json.dumps(header).encode()
    random = np.random.default_rng(1).normal(0, 0.05, ROW_BYTES // 2).astype(np.float32)
    block = (random.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for start in range(0, at, ROW_BYTES):
            out.write(block[: min(ROW_BYTES, at - start)])
    return at


def plain_copy(source: Path, target: Path, *, to_f16: bool) -> float:
    """Seconds to read the file, cast it where asked, write and sync it."""
    began = time.perf_counter()
    with source.open("rb", buffering=0) as given, target.open("wb", buffering=0) as out:
        while data := given.read(ROW_BYTES):
            if to_f16:
                whole = np.frombuffer(data[: len(data) // 2 * 2], np.uint16)
                with np.errstate(over="ignore"):  # the file's header is cast with the rest
                    out.write((whole.astype(np.uint32) << 16).view(np.float32).astype(np.float16).data)
            else:
                out.write(data)
        os.fsync(out.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


if __name__ == "__main__":
    main()
