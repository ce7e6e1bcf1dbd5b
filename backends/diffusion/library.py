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
if "diffusers" not in _modules:  # else it believes what it saw when it was imported
    _modules.setdefault("bitsandbytes", None)

import diffusers
import transformers
from accelerate import init_empty_weights as empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

__all__ = ["AutoencoderKL", "empty_weights"]


def allow_bitsandbytes() -> None:
    """For a model that is quantised: the next import finds it again."""
    if _modules.get("bitsandbytes", _modules) is None:
        del _modules["bitsandbytes"]


def be_quiet() -> None:
    """No progress bars and no advice on stderr."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def of_diffusers(name: str) -> Any:
    """One of its own classes, imported when it is asked for."""
    return getattr(diffusers, name)


def of_transformers(name: str) -> Any:
    """The same of transformers."""
    return getattr(transformers, name)
