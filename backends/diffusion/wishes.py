"""What a model's family cannot do of what requests and tables ask for, each as a sentence; nothing of it is ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.diffusion.header import DrawHeader

AUTO: Final = "auto"
_UNGUIDED: Final = "this model was distilled to need no guidance, and has no place for it. hint: leave it out"


def scheduler_problem(header: DrawHeader, name: str) -> str | None:
    """Why images of a model cannot be denoised by this scheduler; None where they can. `auto` is the folder's own."""
    if name == AUTO or name in header.schedulers:
        return None
    known = " or ".join(header.schedulers)
    return f"{name} is for other models; this one denoises by flow matching. hint: {known}, or leave it out"


def failing_problem(failing: Mapping[str, str], name: str) -> str | None:
    """Why a scheduler cannot be taken that was tried when the model was loaded."""
    why = failing.get(name)
    return None if why is None else f"{name} {why}"


def guidance_problem(header: DrawHeader, guidance: float | None) -> str | None:
    """Why a model takes no guidance where one is asked for."""
    return _UNGUIDED if guidance and header.guidance == "none" else None


def negative_problem(header: DrawHeader, guidance: float) -> str | None:
    """Why what is not wanted would have no effect, at this guidance."""
    if header.guidance != "free":
        return (
            "a negative_prompt has no effect on this model, which is not guided away from anything. hint: leave it out"
        )
    if guidance <= 1:
        return (
            f"a negative_prompt has no effect without guidance, and guidance_scale is {guidance:g}. "
            "hint: more than 1, or leave negative_prompt out"
        )
    return None


def short_problem(header: DrawHeader) -> str | None:
    """Why there is nothing that would read a short prompt beside the prompt."""
    if "t5" in header.text_encoders.values():
        return None
    return "every text encoder of this model reads the prompt itself. hint: leave short_prompt out"
