"""Child process: loads a model folder with bitsandbytes quantisation and saves it. Request on stdin: JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from backends.files import model_files
from quantize.orphan import die_with_parent


def main() -> None:
    """One request."""
    die_with_parent()
    request = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(
        request["source"],
        quantization_config=_config(request["type"], Path(request["source"])),
        dtype="auto",
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=False,
        local_files_only=True,
    )
    model.save_pretrained(request["target"])


def _config(type_name: str, source: Path) -> Any:
    if type_name == "bnb-8bit":
        # bitsandbytes' own default of 6 finds outliers over a whole batch, so that requests depend on each other
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    config = model_files.read_object(source / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4" if type_name == "bnb-fp4" else "nf4",
        bnb_4bit_compute_dtype=torch.float16 if stored == "float16" else torch.bfloat16,
    )


if __name__ == "__main__":
    main()
