"""Diffusers and transformers, imported without a network and without bitsandbytes, and what this folder takes of them.

Diffusers imports bitsandbytes wherever that is installed: a second of a worker's start for kernels that are not used.
"""

# ruff: noqa: E402 - what the libraries read while they are imported comes first

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})  # read when the libraries are imported
_modules: dict[str, Any] = sys.modules
_modules.setdefault("bitsandbytes", None)

import diffusers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

__all__ = ["AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer", "UNet2DConditionModel"]


def be_quiet() -> None:
    """No progress bars and no advice on stderr."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def scheduler_class(name: str) -> Any:
    """One of diffusers' own, by its class name."""
    return getattr(diffusers, name)
