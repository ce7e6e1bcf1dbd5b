"""Qwen 2, 2.5 and 3 (dense)."""

from __future__ import annotations

from typing import Any

from quantize.errors import QuantizeError
from quantize.hf.config import Config
from quantize.hf.families.base import Family, plain_decoder_tensor, write_decoder


def _write(writer: Any, config: Config) -> None:
    config.require("hidden_act", "silu", "swish")
    if config.flag("use_sliding_window", default=False):
        raise QuantizeError("use_sliding_window is true in config.json, which llama.cpp does not compute for Qwen")
    write_decoder(writer, config)


QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), ("qwen2",), _write, plain_decoder_tensor)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), ("qwen3",), _write, plain_decoder_tensor)
