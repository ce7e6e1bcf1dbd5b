"""Four streams beside an image, and beside a prompt of as many tokens: the longest steps. `python -m bench.seeing`.

The engine alone, without a server. The language model is the random one of the other benches; the image's encoder is
small, and runs before the steps that are measured: what counts is how its rows are computed beside the streams.
"""

from __future__ import annotations

import gc
import hashlib
import io
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends import registry
from backends.alone import check, start, vocabulary_size
from backends.engine import AnyEngine
from backends.messages import (
    Finished,
    Generate,
    GeneratorPlan,
    LoadModel,
    MediaSegment,
    Medium,
    Sampling,
    Segment,
    SegmentPrompt,
    TokenSegment,
)
from backends.workload import random_tokens
from bench import model
from server.bench.figures import median

STREAMS, ROUNDS, GENERATED = 4, 7, 1500
SIDE, PATCH, WIDTH, INNER = 184, 8, 64, 128
N_ROWS = (SIDE // PATCH) ** 2


def main() -> None:
    """Print both, in ms: of each round the longest step, and all steps of the prompt together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seer.gguf"
        path.symlink_to(model.path())
        _projector(Path(folder) / "mmproj-seer.gguf", width=model.Shape().n_embd)
        engine = _opened(path)
        found = _rounds(engine)
        engine.close()
    for kind, rounds in found.items():
        longest, whole = zip(*rounds, strict=True)
        told = f"longest step {median(longest):.0f} ms ({min(longest):.0f} to {max(longest):.0f})"
        print(f"{kind}: {told}, in all {median(whole):.0f} ms")


def _opened(path: Path) -> AnyEngine:
    plan = GeneratorPlan(2048, STREAMS + 1, "f16", 0, device="cpu")
    engine = registry.engine_of("gguf")(LoadModel("bench", "gguf", str(path), plan), lambda _: None)
    gc.collect()
    gc.freeze()
    gc.disable()
    return engine


def _rounds(engine: AnyEngine) -> dict[str, list[tuple[float, float]]]:
    n_vocab = vocabulary_size(engine)
    start(engine, [_job(f"stream-{i}", [TokenSegment(random_tokens(32, n_vocab, i))]) for i in range(STREAMS)])
    for _ in range(40):
        check(engine.step())
    found: dict[str, list[tuple[float, float]]] = {"text": [], "image": []}
    for number in range(ROUNDS + 1):  # the first one learns what a pass takes
        words = TokenSegment(random_tokens(N_ROWS, n_vocab, 100 + number))
        for kind, segment in (("text", words), ("image", MediaSegment(_picture(number)))):
            steps = _steps(engine, _job(f"{kind}-{number}", [segment, TokenSegment([5, 6, 7])], n_tokens=2))
            if number:
                found[kind].append((max(steps), sum(steps)))
    return found


def _steps(engine: AnyEngine, job: Generate) -> list[float]:
    """Milliseconds of each step that computes something of the job's prompt."""
    start(engine, [job])
    took: list[float] = []
    while True:
        began = time.perf_counter()
        step = check(engine.step())
        if step.n_prefill:
            took.append(1e3 * (time.perf_counter() - began))
        if any(isinstance(event, Finished) and event.id == job.id for event in step.events):
            return took


def _job(name: str, segments: list[Segment], n_tokens: int = GENERATED) -> Generate:
    greedy = Sampling(temperature=0)
    return Generate(name, SegmentPrompt(segments), max_tokens=n_tokens, ignore_eos=True, sampling=greedy)


def _picture(seed: int) -> Medium:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    return Medium("image", data, hashlib.sha256(data).hexdigest(), "image/png")


def _projector(path: Path, *, width: int) -> None:
    """A SigLIP tower of one layer with random weights, and its bridge."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    figures = {"embedding_length": WIDTH, "feed_forward_length": INNER, "block_count": 2, "projection_dim": width,
               "attention.head_count": 2, "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
    for key, value in figures.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5] * 3)
    rng = np.random.default_rng(2)
    for name, sizes in _shapes(width).items():
        random: NDArray[np.float32] = (rng.standard_normal(sizes) * 0.15).astype(np.float32)
        writer.add_tensor(name, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(width: int) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH),
        "v.patch_embd.bias": (WIDTH,),
        "v.position_embd.weight": (N_ROWS, WIDTH),
        "mm.0.weight": (width, WIDTH),
        "mm.0.bias": (width,),
        "mm.2.weight": (width, width),
        "mm.2.bias": (width,),
    }
    matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (WIDTH, WIDTH))
    for layer in range(2):
        for part, sizes in (matrices | {"ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}).items():
            made[f"v.blk.{layer}.{part}.weight"] = sizes
            made[f"v.blk.{layer}.{part}.bias"] = sizes[:1]
        for norm in ("ln1", "ln2"):
            made |= {f"v.blk.{layer}.{norm}.weight": (WIDTH,), f"v.blk.{layer}.{norm}.bias": (WIDTH,)}
    return made


if __name__ == "__main__":
    main()
