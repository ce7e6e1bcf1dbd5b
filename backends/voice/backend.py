"""Voices of hibari, as `backends.backend.Backend` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backends.backend import Files
from backends.files import model_files
from backends.kinds import AnyKind
from backends.messages import Figure
from backends.plan import Amount, Footprint, Wish
from backends.voice import arithmetic
from backends.voice.header import SUFFIX, VoiceHeader, files_of, is_voice, read
from backends.voice.kind import SPEAK, VoicePlan

if TYPE_CHECKING:
    from pathlib import Path

    from backends.backend import Setting
    from backends.choices import Choices
    from backends.messages import MediaKind
    from backends.options import Options
    from backends.speed import Speeds

_PARALLEL = 4
"""Texts at once where the operator says nothing."""


class VoiceChoices:
    """See `backends.choices.Choices`: how many texts at once."""

    def figures(self, _header: VoiceHeader, plan: VoicePlan) -> Mapping[str, Figure]:
        """For `/v1/capacity`."""
        return {"parallel": plan.parallel}

    def others(
        self,
        _header: VoiceHeader,
        plan: VoicePlan,
        room: Amount,
        footprint_of: Callable[[VoicePlan], Footprint],
        *,
        fits: bool,
    ) -> Sequence[VoicePlan]:
        """One at a time; a plan that fits `fits` as it is."""
        fewer = replace(plan, parallel=1)
        return [] if fits or not footprint_of(fewer).amount.within(room) else [fewer]

    def instead(self, plan: VoicePlan, room: Amount, footprint_of: Callable[[VoicePlan], Footprint]) -> Sequence[str]:
        """What to configure."""
        return ["parallel 1"] if footprint_of(replace(plan, parallel=1)).amount.within(room) else []


class Voices:
    """See `backends.backend.Backend`."""

    name = "voice"
    files = "a voice of hibari"
    kinds: Sequence[AnyKind] = (SPEAK,)
    engine = "backends.voice.loading:load"
    extra = "voice"
    routes: Sequence[str] = ("backends.voice.route",)
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "context": "which says texts a sentence at a time and has no context to choose",
            "kv_type": "which has no KV cache",
            "kv_tokens": "which has no KV cache",
            "gpu_layers": "which is computed by the processor",
            "sampling": "whose requests say how they are spoken",
        }
    )
    packages: Sequence[str] = ("hibari-tts", "onnxruntime", "av")
    components: Sequence[str] = ()
    media: Sequence[MediaKind] = ()
    choices: Choices[VoiceHeader, VoicePlan] = VoiceChoices()
    speeds: Speeds[VoiceHeader, VoicePlan] | None = None

    def options(self) -> type[Options]:
        """Its own keys."""
        from backends.voice.options import VoiceOptions

        return VoiceOptions

    def recognise(self, path: Path) -> Files | None:
        """ONNX files with what goes into a voice, and what comes out."""
        found = []
        for file in files_of(path):
            try:
                found += [file] if is_voice(file) else []
            except model_files.FileError:
                continue
        return Files(tuple(found)) if found else None

    def claims(self, reference: str) -> bool:
        """Such as `voices/heart.onnx`."""
        return reference.lower().endswith(SUFFIX)

    def describe(self, path: Path, _options: Mapping[str, Setting]) -> VoiceHeader:
        """The files' own outlines."""
        return read(path)

    def plans(self, _header: VoiceHeader, wish: Wish) -> Iterator[VoicePlan]:
        """As many texts as were asked for; where nothing was, one where memory is short."""
        for parallel in [_PARALLEL, 1] if "parallel" in wish.open else [wish.parallel]:
            yield VoicePlan(device=wish.device, parallel=parallel)

    def longest_context(self, _header: VoiceHeader, _context: int | None) -> int | None:
        """A text has a limit of characters."""
        return None

    def estimate(self, header: VoiceHeader, plan: VoicePlan) -> Footprint:
        """See `backends.voice.arithmetic`."""
        return arithmetic.predict(header, plan)

    def card_share(self, _header: VoiceHeader, _plan: VoicePlan) -> float:
        """Nothing lies on a card."""
        return 0.0

    def runtime_bytes(self, _header: VoiceHeader, _plan: VoicePlan) -> Amount:
        """Python with onnxruntime, PyAV and the dictionaries."""
        return Amount(host=arithmetic.RUNTIME_BYTES)
