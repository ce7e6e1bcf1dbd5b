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


_KNOWN: Final = frozenset(name for family in FAMILIES for name in family.hf_names)
_BODIES: Final = frozenset(
    name.removesuffix("ForCausalLM") + "Model" for name in _KNOWN if name.endswith("ForCausalLM")
)
"""A model without its head, as embedding models are often saved. Another head is another model."""


def family_of(architecture: str, model_type: str | None = None) -> Family:
    """The family of a folder, by `model_type` as transformers chooses, or by `architectures` where that is missing.

    Raises QuantizeError with what is known.
    """
    by_type = next((family for family in FAMILIES if model_type in family.model_types), None)
    if by_type is not None and (not architecture or architecture in _KNOWN | _BODIES):
        return by_type
    for family in FAMILIES:
        if architecture in family.hf_names and by_type in (None, family):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hf_names[:1])
    raise QuantizeError(
        f"the architecture {shown(architecture or str(model_type))} is not one of those converted here ({known}). "
        "hint: --converter PATH runs the converter of your own llama.cpp checkout"
    )
