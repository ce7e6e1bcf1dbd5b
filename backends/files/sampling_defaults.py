"""How a model's makers want tokens chosen: `generation_config.json` of a folder, `general.sampling.*` of a GGUF file.

Nonsense in a file is ignored by name. Pure; which value wins is the server's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BOUNDS: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "temperature": (0, 2),
        "top_p": (0, 1),
        "top_k": (0, 2**31 - 1),
        "min_p": (0, 1),
        "typical_p": (1e-6, 1),
        "top_n_sigma": (-1, 100),
        "xtc_probability": (0, 1),
        "xtc_threshold": (0, 1),
        "dynatemp_range": (0, 2),
        "dynatemp_exponent": (0, 5),
        "mirostat": (0, 2),
        "mirostat_tau": (0, 100),
        "mirostat_eta": (0, 1),
        "dry_multiplier": (0, 100),
        "dry_base": (1, 100),
        "dry_allowed_length": (0, 2**31 - 1),
        "dry_penalty_last_n": (-1, 2**31 - 1),
        "repetition_penalty": (0.01, 10),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
    }
)
"""Name -> least and largest value, as in a request."""
GGUF_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "temperature": "general.sampling.temp",
        "top_p": "general.sampling.top_p",
        "top_k": "general.sampling.top_k",
        "min_p": "general.sampling.min_p",
        "repetition_penalty": "general.sampling.penalty_repeat",
        **{
            name: f"general.sampling.{name}"
            for name in ("xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta")
        },
    }
)
_UNSERVED: Final = ("penalty_alpha", "epsilon_cutoff", "eta_cutoff")
"""Ways to choose tokens that onecard has not; neutral values of theirs ask for nothing."""
_WHOLE: Final = frozenset({"top_k", "mirostat", "dry_allowed_length", "dry_penalty_last_n"})
_MOST: Final = 2**31
_NEUTRAL: Final = (None, 0, 1, False)


@dataclass(frozen=True)
class SamplingDefaults:
    """Values by the names that requests have, and what of the file was ignored, a sentence each."""

    values: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def of_folder(document: Any) -> SamplingDefaults:
    """Of a parsed generation_config.json; None stands for a file that is not there."""
    name = "generation_config.json"
    if document is None:
        return SamplingDefaults()
    if not isinstance(document, dict):
        return SamplingDefaults(remarks=(f"{name} is no JSON object: it is ignored",))
    found = _checked({key: document.get(key) for key in (*BOUNDS, *_UNSERVED)}, name)
    if document.get("do_sample") is False:
        return SamplingDefaults({"temperature": 0.0}, found.remarks)
    return found


def of_gguf(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Of a GGUF file's metadata."""
    raw = {name: metadata.get(key) for name, key in GGUF_KEYS.items()}
    raw |= {name: metadata.get(f"general.sampling.{name}") for name in _UNSERVED}
    return _checked(raw, "general.sampling")


def _checked(raw: Mapping[str, Any], where: str) -> SamplingDefaults:
    values: dict[str, float] = {}
    remarks = []
    for name, value in raw.items():
        if name in _UNSERVED:
            if value not in _NEUTRAL:
                remarks.append(f"{where}: {name} is ignored, because onecard does not choose tokens so")
        elif value is not None:
            if (good := _bounded(name, value)) is None:
                low, high = BOUNDS[name]
                remarks.append(f"{where}: {name} = {str(value)[:40]!r} is ignored; {low:g} to {high:g} is possible")
            else:
                values[name] = good
    return SamplingDefaults(values, tuple(remarks))


def _bounded(name: str, value: Any) -> float | None:
    """The value in a request's type; None for one that no request could have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
        return None
    low, high = BOUNDS[name]
    if name in _WHOLE:
        if name == "top_k" and value == -1:
            return 0
        return int(value) if value == int(value) and low <= value <= high else None
    value = round(float(value), 6)  # GGUF's float32 of 0.6 is 0.6000000238
    return value if low <= value <= high else None
