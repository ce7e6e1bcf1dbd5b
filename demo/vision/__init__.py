"""Where the model that sees lies on disk; imports nothing but the standard library and loads nothing."""

from pathlib import Path

_MODEL_DIR = Path(__file__).resolve().parent / "model"

HF_PATH: Path = _MODEL_DIR / "hf"
"""Hugging Face folder: a LLaVA of the demo's language model and a SigLIP tower, F16."""

GGUF_PATH: Path = _MODEL_DIR / "onecard-demo-vision-f16.gguf"
"""Its language model for llama.cpp."""

PROJECTOR_PATH: Path = _MODEL_DIR / "mmproj-onecard-demo-vision-f16.gguf"
"""Its tower and projector for llama.cpp."""

__all__ = ["GGUF_PATH", "HF_PATH", "PROJECTOR_PATH"]
