"""The backend object: what the server and the worker know of such models, without loading any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from msgspec.structs import replace

from backends.backend import Files, Header, HeaderError, Setting
from backends.choices import Choices
from backends.files import model_files
from backends.kinds import AnyKind
from backends.messages import Figure, MediaKind
from backends.options import Options
from backends.plan import Amount, Footprint, Parts, Wish
from backends.speed import Speeds
from tests.echo.kind import ECHO, EchoPlan

Asked = Callable[[EchoPlan], Footprint]
MAGIC = b"ECHO "
RUNTIME_BYTES = 20 * 2**20
VOICE_BYTES = 5 * 2**20


@dataclass(frozen=True)
class EchoHeader(Header):
    """What the line says."""

    backend: ClassVar[str] = "echo"
    weights: int
    voices: int
    fixed: bool
    """The operator has said how many."""

    @property
    def gives(self) -> str:
        return "echoes"

    @property
    def capabilities(self) -> list[str]:
        return ["echo"]


class EchoChoices:
    """See `backends.choices.Choices`: how many speak at once."""

    def figures(self, header: EchoHeader, plan: EchoPlan) -> Mapping[str, Figure]:
        return {"voices": plan.voices}

    def others(
        self, header: EchoHeader, plan: EchoPlan, room: Amount, footprint_of: Asked, *, fits: bool
    ) -> Sequence[EchoPlan]:
        fewer = (replace(plan, voices=n) for n in range(plan.voices - 1, 0, -1))
        return [other for other in fewer if footprint_of(other).amount.within(room)]

    def instead(self, plan: EchoPlan, room: Amount, footprint_of: Asked) -> Sequence[str]:
        one = replace(plan, voices=1)
        return ["voices 1"] if footprint_of(one).amount.within(room) else []


class Echoes:
    """See `backends.backend.Backend`."""

    name = "echo"
    files = "a file that echoes"
    kinds: Sequence[AnyKind] = (ECHO,)
    engine = "tests.echo.engine:load"
    extra = ""
    routes: Sequence[str] = ("tests.echo.route",)
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType(
        {"kv_type": "which has no KV cache", "kv_offload": "which has no KV cache"}
    )
    packages: Sequence[str] = ()
    components: Sequence[str] = ("voices",)
    media: Sequence[MediaKind] = ()
    choices: Choices[EchoHeader, EchoPlan] = EchoChoices()
    speeds: Speeds[EchoHeader, EchoPlan] | None = None

    def options(self) -> type[Options]:
        from tests.echo.options import EchoOptions

        return EchoOptions

    def recognise(self, path: Path) -> Files | None:
        if not path.is_file():
            return None
        with model_files.opened(path) as file:
            return Files((path,)) if file.at(0, len(MAGIC)) == MAGIC else None

    def claims(self, reference: str) -> bool:
        return reference.endswith(".echo")

    def describe(self, path: Path, options: Mapping[str, Setting]) -> EchoHeader:
        words = model_files.read_bytes(path, 100).removeprefix(MAGIC)
        if not words.strip().isdigit():
            raise HeaderError(f"{path.name} does not say how much it weighs")
        return EchoHeader(int(words), int(options.get("voices", 2)), fixed="voices" in options)

    def plans(self, header: EchoHeader, wish: Wish) -> Iterator[EchoPlan]:
        for voices in [header.voices] if header.fixed else range(header.voices, 0, -1):
            yield EchoPlan(device=wish.device, voices=voices)

    def longest_context(self, header: EchoHeader, context: int | None) -> int | None:
        return None

    def estimate(self, header: EchoHeader, plan: EchoPlan) -> Footprint:
        further = {"voices": plan.voices * VOICE_BYTES}
        return Footprint(host=Parts(weights=header.weights, runtime=RUNTIME_BYTES, further=further))

    def card_share(self, header: EchoHeader, plan: EchoPlan) -> float:
        return 0.0

    def runtime_bytes(self, header: EchoHeader, plan: EchoPlan) -> Amount:
        return Amount(host=RUNTIME_BYTES)
