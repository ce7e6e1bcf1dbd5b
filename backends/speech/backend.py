"""Whisper, Wav2Vec2 and SeamlessM4T-v2 folders, as `backends.backend.Backend` asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backends.backend import Files, HeaderError, Setting
from backends.files import model_files
from backends.kinds import AnyKind
from backends.messages import Figure
from backends.plan import Amount, Footprint, Wish
from backends.speech import arithmetic
from backends.speech.ctc_header import is_ctc
from backends.speech.header import SpeechHeader, is_ctranslate2, is_whisper
from backends.speech.kind import TRANSCRIBE, SpeechPlan
from backends.speech.reading import read
from backends.speech.seamless_header import is_seamless

if TYPE_CHECKING:
    from backends.choices import Choices
    from backends.messages import MediaKind
    from backends.options import Options
    from backends.speed import Speeds

_PARALLEL = 4
"""Windows at once where the operator says nothing: the decoder's weights are read once for all of them."""
_LONGEST_S = 14400.0


class SpeechChoices:
    """See `backends.choices.Choices`: how many windows at once."""

    def figures(self, _header: SpeechHeader, plan: SpeechPlan) -> Mapping[str, Figure]:
        """For `/v1/capacity`."""
        return {"parallel": plan.parallel}

    def others(
        self,
        _header: SpeechHeader,
        plan: SpeechPlan,
        room: Amount,
        footprint_of: Callable[[SpeechPlan], Footprint],
        *,
        fits: bool,
    ) -> Sequence[SpeechPlan]:
        """Fewer windows; one that fits `fits` as it is."""
        found = [replace(plan, parallel=n) for n in _fewer(plan.parallel)]
        return [] if fits else [other for other in found if footprint_of(other).amount.within(room)]

    def instead(self, plan: SpeechPlan, room: Amount, footprint_of: Callable[[SpeechPlan], Footprint]) -> Sequence[str]:
        """What to configure."""
        return ["parallel 1"] if footprint_of(replace(plan, parallel=1)).amount.within(room) else []


class Speech:
    """See `backends.backend.Backend`."""

    name = "speech"
    files = "a folder of a model that hears"
    kinds: Sequence[AnyKind] = (TRANSCRIBE,)
    engine = "backends.speech.loading:load"
    extra = "speech"
    routes: Sequence[str] = ("backends.speech.route",)
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "context": "which hears windows of 30 s and has no context to choose",
            "kv_type": "whose caches have the type it computes in",
            "kv_offload": "whose KV cache lies where it computes",
            "kv_tokens": "whose caches are those of its windows",
            "gpu_layers": "whose layers are all on one device",
            "sampling": "whose requests say how tokens are chosen",
        }
    )
    packages: Sequence[str] = ("transformers", "torch", "av", "bitsandbytes")
    components: Sequence[str] = ("audio",)
    media: Sequence[MediaKind] = ()
    choices: Choices[SpeechHeader, SpeechPlan] = SpeechChoices()
    speeds: Speeds[SpeechHeader, SpeechPlan] | None = None

    def options(self) -> type[Options]:
        """Its own keys."""
        from backends.speech.options import SpeechOptions

        return SpeechOptions

    def recognise(self, path: Path) -> Files | None:
        """A folder whose config.json is Whisper's, Wav2Vec2's or Seamless's, or that CTranslate2 made of one."""
        config = path / "config.json"
        if not path.is_dir() or model_files.why_not_file(config) is not None or not config.is_file():
            return None
        try:
            told = model_files.read_object(config)
        except model_files.FileError:
            return None
        if not (is_whisper(told) or is_ctranslate2(told) or is_ctc(told) or is_seamless(told)):
            return None
        return Files(tuple(sorted(file for file in path.glob("*.safetensors") if file.is_file())))

    def claims(self, reference: str) -> bool:
        """Such as `openai/whisper-base`."""
        name = Path(reference).name.lower()
        return any(word in name for word in ("whisper", "wav2vec2", "hubert", "seamless-m4t-v2"))

    def describe(self, path: Path, options: Mapping[str, Setting]) -> SpeechHeader:
        """config.json and the weights' headers."""
        asked = options.get("quantization", "none")
        longest = options.get("max_audio_s", _LONGEST_S)
        if not isinstance(longest, (int, float)):
            raise HeaderError("max_audio_s is no number")
        return read(path, quantization=str(asked), max_audio_s=float(longest))

    def plans(self, header: SpeechHeader, wish: Wish) -> Iterator[SpeechPlan]:
        """As many windows as were asked for; where nothing was, fewer where memory is short."""
        if "parallel" not in wish.open:
            yield SpeechPlan(device=wish.device, parallel=wish.parallel)
            return
        for parallel in (_PARALLEL, *_fewer(_PARALLEL)):
            yield SpeechPlan(device=wish.device, parallel=parallel)

    def longest_context(self, header: SpeechHeader, context: int | None) -> int | None:
        """It reads no text."""
        return None

    def estimate(self, header: SpeechHeader, plan: SpeechPlan) -> Footprint:
        """See `backends.speech.arithmetic`."""
        return arithmetic.predict(header, plan)

    def card_share(self, header: SpeechHeader, plan: SpeechPlan) -> float:
        """All of it or nothing."""
        return 1.0 if plan.device == "cuda" else 0.0

    def runtime_bytes(self, header: SpeechHeader, plan: SpeechPlan) -> Amount:
        """Python with PyTorch and PyAV."""
        return arithmetic.RUNTIME_BYTES[plan.device]


def _fewer(parallel: int) -> Iterator[int]:
    while parallel > 1:
        parallel //= 2
        yield parallel
