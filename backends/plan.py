"""What is asked of a load, and the bytes it takes by component. How it is done is a `messages.plans.LoadPlan`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from backends.messages import Device, KvOffload, KvTypes

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO_CONTEXT: Final = 8192
"""Where a context that was left open begins; where a request needs more, it doubles."""
ANSWER_TOKENS: Final = 1024
"""Room that an answer is worth a longer context for, where more was asked for or nothing was said."""
BATCH_TOKENS: Final = 512
"""Tokens of one forward pass at most; compute buffers are made for that many."""
SCORED_ROWS: Final = 16
"""Rows of a pass that may have logits beside one per sequence, for prompt tokens that are scored: 8 MiB at a vocabulary
of 128 000."""
CONSTRAINT_BYTES: Final = 350
"""Host memory per token of a vocabulary for what makes constraints over it; measured."""
JOBS_AT_ONCE: Final = 64
"""What an embedding engine reports as `parallel`: jobs cost it no memory, only inputs in the same pass do."""


@dataclass(frozen=True)
class Wish:
    """What the configuration asks of a load; None means choose."""

    context: int | None
    parallel: int
    kv_type: KvTypes
    gpu_layers: int | None
    device: Device
    open: frozenset[Literal["parallel", "kv_type"]] = frozenset()
    """Values that were not asked for: the plan may take fewer sequences, or a KV cache of 8 bits."""
    kv_tokens: int | None = None
    """Of the KV pool; None: context x parallel, less where memory is short, never below one context."""
    kv_offload: KvOffload = "card"
    context_max: int | None = None
    """The most that a context left open may become; None: what the model was trained for."""
    least_context: int = 0
    """Of a context left open: tokens that it has to hold; 0: as many as it begins with."""


@dataclass(frozen=True)
class Amount:
    """Bytes of both memories. On a machine without a card there is only host memory."""

    device: int = 0
    """Of the graphics card's memory."""
    host: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.device + other.device, self.host + other.host)

    def __sub__(self, other: Amount) -> Amount:
        """Either side may come out negative."""
        return Amount(self.device - other.device, self.host - other.host)

    def __bool__(self) -> bool:
        return self.device != 0 or self.host != 0

    def within(self, room: Amount) -> bool:
        """Whether both sides have room."""
        return self.device <= room.device and self.host <= room.host

    def missing_from(self, room: Amount) -> Amount:
        """What `room` lacks, negative where it has more; nothing of a memory of which nothing is needed."""
        return Amount(
            self.device - room.device if self.device else 0,
            self.host - room.host if self.host else 0,
        )

    def at_most(self, most: Amount) -> Amount:
        """The smaller of each side."""
        return Amount(min(self.device, most.device), min(self.host, most.host))

    def no_less_than_none(self) -> Amount:
        """With nothing in place of what is negative."""
        return Amount(max(0, self.device), max(0, self.host))

    @property
    def total_bytes(self) -> int:
        """Both sides together."""
        return self.device + self.host


RUNTIME_BYTES: Final[Mapping[Device, Amount]] = MappingProxyType(
    {"cpu": Amount(host=77 * 2**19), "cuda": Amount(device=400 * 2**20, host=200 * 2**20)}
)
"""A process with its libraries, before this machine has measured one. On a card the driver's context and cuBLAS; what
CUDA takes of host memory was never measured before the first load."""


@dataclass(frozen=True)
class Parts:
    """Bytes of one memory by component."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    runtime: int = 0
    """The process with its libraries, its vocabulary and what makes constraints."""
    projector: int = 0
    further: Mapping[str, int] = field(default_factory=dict)
    """What only one backend's models have, by its `Backend.components`."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        own = self.weights + self.kv + self.compute + self.runtime + self.projector
        return own + sum(self.further.values()) if self.further else own

    @property
    def by_name(self) -> dict[str, int]:
        """For people and for JSON."""
        return {**{name: getattr(self, name) for name in COMPONENTS}, **self.further}


COMPONENTS: Final = tuple(one.name for one in fields(Parts) if one.name != "further")
"""The names that parts of all backends have."""


@dataclass(frozen=True)
class Footprint:
    """The bytes a model takes in a given configuration. On a machine without a card all of them are host memory."""

    device: Parts = Parts()
    host: Parts = Parts()

    @property
    def amount(self) -> Amount:
        """The sums."""
        return Amount(self.device.total_bytes, self.host.total_bytes)

    def on(self, device: Device) -> Parts:
        """What lies where the model computes."""
        return self.device if device == "cuda" else self.host
