"""Where the model that draws lies on disk; imports nothing but the standard library and loads nothing."""

from pathlib import Path

PATH: Path = Path(__file__).resolve().parent / "model"
"""A diffusers folder: a tiny Stable Diffusion, F16."""

__all__ = ["PATH"]
