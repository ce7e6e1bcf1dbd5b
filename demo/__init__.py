"""Where the demo model lies on disk; imports nothing but the standard library and loads nothing."""

from pathlib import Path

_MODEL_DIR = Path(__file__).resolve().parent / "model"

HF_PATH: Path = _MODEL_DIR / "hf"
"""Hugging Face folder: config, tokenizer, chat template, `model.safetensors` (F16)."""

GGUF_PATH: Path = _MODEL_DIR / "onecard-demo-f16.gguf"
"""The same weights as a GGUF file (F16 matrices, F32 norms)."""

__all__ = ["GGUF_PATH", "HF_PATH"]
