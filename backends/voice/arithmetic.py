"""What a voice takes: its weights, the longest piece of text, encoders, and the dictionaries of the accent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.plan import Footprint, Parts

if TYPE_CHECKING:
    from backends.voice.header import VoiceHeader
    from backends.voice.kind import VoicePlan

RUNTIME_BYTES: Final = 150 * 2**20
"""Python with onnxruntime, PyAV and the dictionaries of one accent; measured."""
PIECE_BYTES: Final = 144 * 2**20
"""Activations and spectra of the longest piece of text at the lowest speed; measured."""
ENCODER_BYTES: Final = 4 * 2**20
"""Of one text: its encoder, and sound that is on its way."""
_SESSION_FACTOR: Final = 3
"""onnxruntime unpacks weights of 8 bits, and holds its own copies of some."""


def predict(header: VoiceHeader, plan: VoicePlan) -> Footprint:
    """What a plan takes: all of it of host memory, whatever the machine has."""
    return Footprint(host=Parts(weights=weight_bytes(header), compute=compute_bytes(plan), runtime=RUNTIME_BYTES))


def weight_bytes(header: VoiceHeader) -> int:
    """Of all voices, each in a session of its own."""
    return _SESSION_FACTOR * sum(one.weight_bytes for one in header.voices)


def compute_bytes(plan: VoicePlan) -> int:
    """One piece of one text is computed at a time."""
    return PIECE_BYTES + plan.parallel * ENCODER_BYTES
