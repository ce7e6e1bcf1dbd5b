"""The architectures this converter knows, one file per family."""

from __future__ import annotations

from typing import Final

from quantize.errors import QuantizeError
from quantize.hf.families.base import Family
from quantize.hf.families.bert import BERT
from quantize.hf.families.gemma import GEMMA2, GEMMA3
from quantize.hf.families.gpt2 import GPT2
from quantize.hf.families.llama import LLAMA
from quantize.hf.families.phi import PHI3
from quantize.hf.families.qwen import QWEN2, QWEN3
from quantize.words import shown

FAMILIES: Final = (LLAMA, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, GPT2, BERT)


def family_of(architecture: str) -> Family:
    """The family of an architecture name of config.json. Raises QuantizeError with what is known."""
    for family in FAMILIES:
        if architecture in family.hf_names:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hf_names[:1])
    raise QuantizeError(
        f"the architecture {shown(architecture)} is not one of those converted here ({known}). "
        "hint: --converter PATH runs the converter of your own llama.cpp checkout"
    )
