"""The backend object: what the server and the worker know of such models, without loading any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from backends.backend import Files, Header, HeaderError, Setting
from backends.files import model_files
from backends.kinds import AnyKind
from backends.options import Options
from backends.plan import Amount, Footprint, Parts, Wish
from tests.echo.kind import ECHO, EchoPlan

MAGIC = b"ECHO "
RUNTIME_BYTES = 20 * 2**20


@dataclass(frozen=True)
class EchoHeader(Header):
    """What the line says."""

    backend: ClassVar[str] = "echo"
    weights: int

    @property
    def gives(self) -> str:
        return "echoes"

    @property
    def capabilities(self) -> list[str]:
        return ["echo"]


class Echoes:
    """See `backends.backend.Backend`."""

    name = "echo"
    files = "a file that echoes"
    kinds: Sequence[AnyKind] = (ECHO,)
    engine = "tests.echo.engine:load"
    routes: Sequence[str] = ("tests.echo.route",)
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType({"kv_type": "which has no KV cache"})
    packages: Sequence[str] = ()

    def options(self) -> type[Options]:
        return Options

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
        return EchoHeader(int(words))

    def plans(self, header: EchoHeader, wish: Wish) -> Iterator[EchoPlan]:
        yield EchoPlan(device=wish.device)

    def longest_context(self, header: EchoHeader, context: int | None) -> int | None:
        return None

    def estimate(self, header: EchoHeader, plan: EchoPlan) -> Footprint:
        return Footprint(host=Parts(weights=header.weights, runtime=RUNTIME_BYTES))

    def card_share(self, header: EchoHeader, plan: EchoPlan) -> float:
        return 0.0

    def runtime_bytes(self, header: EchoHeader, plan: EchoPlan) -> Amount:
        return Amount(host=RUNTIME_BYTES)
