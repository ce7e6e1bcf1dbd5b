"""How fast a plan computes: bytes that a token moves and multiply-adds it takes, over what a machine does. Pure.

A decoded token reads every weight it uses once, so its time is bytes over the rate at which they are read; a prompt is
computed in batches that share the reading, so its time is multiply-adds over the rate of them. Both are told apart by
the type of a weight, because unpacking costs differently, and by the side it lies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

import msgspec

from backends.messages import LoadPlan

if TYPE_CHECKING:
    from backends.plan import Wish

PROMPT_TOKENS: Final = 1024
"""Of the prompt whose speed is told, as far as the context goes."""
SHORT_TOKENS: Final = 512
"""The conversation at whose end the speed of decoding is told."""
GROUP: Final = 4
"""Queries that share keys and values where attention is measured. A card reads these once for all of them, so there a
token's attention costs what it reads. Of a processor that is half of it: with 8 and with 12 queries over the same four
keys a token before takes 6.0 and 6.5 us of an AMD EPYC's core."""
ANSWER_TOKENS: Final = 256
"""Of the turn by which plans are compared: such a prompt, and such an answer in a context that is half full."""
Cache = tuple[str, str, int]
"""What attention reads: the types of keys and of values, and the values of a head."""
RateSource = Literal["measured", "rough", "assumed"]


class Rates(msgspec.Struct, frozen=True):
    """What one processor does with the memory beside it, by the engine that was measured."""

    weights: dict[str, float]
    """Type of a weight -> bytes per second that one token's products read of it."""
    rows: dict[str, float]
    """Type of a weight -> seconds that each row of a matrix adds to them."""
    batches: dict[str, float]
    """Type of a weight -> multiply-adds per second in a batch of a prompt."""
    memory: float
    """Bytes per second of weights of the type `like` that no cache holds. What that adds to a byte, it adds to those of
    every type that is not in `streamed`."""
    attention: dict[str, float]
    """Type of the KV cache and values per head, `f16 64` -> multiply-adds per second of one token's attention."""
    attention_batches: dict[str, float]
    """The same in a batch of a prompt."""
    matrix_s: float = 0.0
    """A product takes so long beyond its weights."""
    node_s: float = 0.0
    """Any other operation on one token."""
    graph_s: float = 0.0
    """A pass takes so long beyond its operations."""
    like: str = "F16"
    """The type of the weights that `memory` was measured with."""
    streamed: dict[str, float] = {}
    """Type of a weight -> bytes per second of weights that no cache holds, where that was measured by itself. Types
    differ: what unpacks whole rows hides more of the waiting, and what looks factors up finds them nowhere near."""
    cache_bytes: int = 0
    """Weights that fit into it are read faster than out of memory; 0: there is none."""

    def weight_s(self, n_bytes: Mapping[str, float], *, cached: bool) -> float:
        """Seconds to read so many bytes of each type for one token."""
        return sum(n * self._byte_s(kind, cached=cached) for kind, n in n_bytes.items() if n)

    def _byte_s(self, kind: str, *, cached: bool) -> float:
        held_s = 1 / _of(self.weights, kind)
        if cached:
            return held_s
        if kind in self.streamed:
            return max(held_s, 1 / self.streamed[kind])
        return held_s + max(0.0, 1 / self.memory - 1 / _of(self.weights, self.like))

    def row_s(self, n_rows: Mapping[str, float]) -> float:
        """Seconds of so many rows of each type for one token."""
        return sum(n * self.rows.get(kind, 0.0) for kind, n in n_rows.items())

    def batch_s(self, madds: Mapping[str, float]) -> float:
        """Seconds of so many multiply-adds with weights of each type, in a batch."""
        return sum(n / _of(self.batches, kind) for kind, n in madds.items() if n)

    def attention_s(self, madds: float, cache: Cache) -> float:
        """Seconds of so many multiply-adds of one token's attention."""
        return _half_each_s(self.attention, madds, cache)

    def attention_batch_s(self, madds: float, cache: Cache) -> float:
        """The same in a batch."""
        return _half_each_s(self.attention_batches, madds, cache)

    def scaled(
        self,
        *,
        products: float,
        in_batches: float,
        memory: float,
        streamed: Mapping[str, float],
        matrix_s: float,
        node_s: float,
        graph_s: float,
    ) -> Rates:
        """Those of more threads: so many times as fast in the caches, out of memory as they were measured to be, with
        what threads cost that wait for each other.
        """
        return msgspec.structs.replace(
            self,
            weights={kind: n * products for kind, n in self.weights.items()},
            rows={kind: n / products for kind, n in self.rows.items()},
            batches={kind: n * in_batches for kind, n in self.batches.items()},
            memory=max(memory, self.memory),
            streamed={kind: max(n, self.streamed.get(kind, 0.0)) for kind, n in streamed.items()},
            attention={kind: n * products for kind, n in self.attention.items()},
            attention_batches={kind: n * in_batches for kind, n in self.attention_batches.items()},
            matrix_s=matrix_s,
            node_s=node_s,
            graph_s=graph_s,
        )


def _of(rates: Mapping[str, float], kind: str) -> float:
    """Of a type that was not measured the slowest that was: too slow rather than too fast."""
    return rates.get(kind) or min(rates.values())


def _half_each_s(rates: Mapping[str, float], madds: float, cache: Cache) -> float:
    """Half of them are with keys, half with values."""
    keys, values, head_size = cache
    return sum(madds / 2 / _nearest(rates, kv_type, head_size) for kv_type in (keys, values)) if madds else 0.0


def _nearest(rates: Mapping[str, float], kv_type: str, head_size: int) -> float:
    """Of heads that large, or else of the next smaller ones that were measured."""
    sizes = [int(size) for kind, size in map(str.split, rates) if kind == kv_type]
    fitting = [size for size in sizes if size <= head_size] or sizes
    return rates[f"{kv_type} {max(fitting)}"] if fitting else min(rates.values())


class Machine(msgspec.Struct, frozen=True):
    """The rates of one machine for one engine."""

    host: Rates
    """With all threads."""
    host_alone: Rates
    """With one, which is what toys get."""
    device: Rates | None = None
    """Of the card; None without one."""
    link: float = 0.0
    """Bytes per second from host memory to the card."""
    source: RateSource = "measured"


@dataclass(frozen=True)
class Work:
    """What one side of a plan does for a token."""

    read: Mapping[str, float] = field(default_factory=dict)
    """Type of a weight -> bytes that a decoded token reads."""
    rows: Mapping[str, float] = field(default_factory=dict)
    """Type of a weight -> rows of matrices that it uses."""
    madds: Mapping[str, float] = field(default_factory=dict)
    """Type of a weight -> multiply-adds of one token of a prompt."""
    cell_madds: float = 0.0
    """Multiply-adds of its attention for every token before it."""
    cell_batch_madds: float = 0.0
    """The same of a token in a batch."""
    n_matrices: float = 0.0
    n_nodes: float = 0.0
    resident_bytes: float = 0.0
    """Of all weights on this side that any token may use."""
    cache: Cache = ("f16", "f16", 64)


@dataclass(frozen=True)
class Speed:
    """Of one sequence alone."""

    token_s: float
    """Seconds of a decoded token in an empty context."""
    cell_s: float
    """What each token before it adds."""
    prompt_s: float
    """Seconds of a token of a prompt, without what came before it."""
    prompt_cell_s: float
    context: int
    """Tokens one request may use."""

    def decode_per_s(self, n_before: float = SHORT_TOKENS) -> float:
        """Decoded tokens per second after so many others."""
        return 1 / (self.token_s + self.cell_s * min(n_before, self.context))

    def prefill_per_s(self, n_tokens: float = PROMPT_TOKENS) -> float:
        """Tokens per second of a prompt that long."""
        return 1 / (self.prompt_s + self.prompt_cell_s * min(n_tokens, self.context) / 2)

    @property
    def turn_s(self) -> float:
        """Seconds of the turn by which plans are compared."""
        n_prompt = min(PROMPT_TOKENS, self.context // 2)
        return n_prompt / self.prefill_per_s(n_prompt) + ANSWER_TOKENS / self.decode_per_s(self.context / 2)

    def times(self, *, decode: float, prefill: float) -> Speed:
        """One that takes so many times the seconds."""
        return replace(
            self,
            token_s=self.token_s * decode,
            cell_s=self.cell_s * decode,
            prompt_s=self.prompt_s * prefill,
            prompt_cell_s=self.prompt_cell_s * prefill,
        )


def speed_of(
    host: Work, device: Work, machine: Machine, *, context: int, batch: int, step_s: float, alone: bool = False
) -> Speed:
    """The speed of a plan that does so much on either side; `step_s` is what the engine adds to a pass.

    A batch's weights of the host are either computed there or copied to the card, whatever is sooner.
    """
    rates = machine.host_alone if alone else machine.host
    cached = host.resident_bytes <= rates.cache_bytes
    token_s = step_s + _pass_s(host, rates) + rates.weight_s(host.read, cached=cached) + rates.row_s(host.rows)
    cell_s = rates.attention_s(host.cell_madds, host.cache)
    prompt_s = rates.batch_s(host.madds) + (step_s + _pass_s(host, rates)) / batch
    prompt_cell_s = rates.attention_batch_s(host.cell_batch_madds, host.cache)
    card = machine.device
    if card is not None and (device.n_matrices or device.cell_madds):
        token_s += _pass_s(device, card) + card.weight_s(device.read, cached=False) + card.row_s(device.rows)
        cell_s += card.attention_s(device.cell_madds, device.cache)
        copied_s = card.batch_s(host.madds) + host.resident_bytes / machine.link / batch
        prompt_s = min(prompt_s, copied_s + step_s / batch) + card.batch_s(device.madds) + _pass_s(device, card) / batch
        prompt_cell_s += card.attention_batch_s(device.cell_batch_madds, device.cache)
    return Speed(token_s, cell_s, prompt_s, prompt_cell_s, context)


def _pass_s(work: Work, rates: Rates) -> float:
    has = work.n_matrices or work.n_nodes
    return work.n_matrices * rates.matrix_s + work.n_nodes * rates.node_s + (rates.graph_s if has else 0.0)


ASSUMED_CARD: Final = Rates(
    weights={"any": 4.0e11},
    rows={},
    batches={"any": 1.2e13},
    memory=4.0e11,
    attention={"any 0": 6.0e11},
    attention_batches={"any 0": 8.0e12},
    matrix_s=3e-6,
    node_s=2e-6,
    graph_s=30e-6,
)
"""For plans of a machine that is not this one: four fifths of the 504 GB/s of an RTX 4070 Ti's memory."""
ASSUMED_LINK: Final = 2.0e10
"""PCIe 4 with sixteen lanes, four fifths of its 25 GB/s."""


def with_assumed_card(machine: Machine) -> Machine:
    """For plans with a card where none was measured."""
    if machine.device is not None:
        return machine
    return Machine(machine.host, machine.host_alone, ASSUMED_CARD, ASSUMED_LINK, "assumed")


HeaderT = TypeVar("HeaderT", contravariant=True)
PlanT = TypeVar("PlanT", bound=LoadPlan)


class Speeds(Protocol[HeaderT, PlanT]):
    """How fast one backend's plans are, and which of them give up no more than another."""

    program: str
    """The module whose process measures the rates of this machine (`backends.border.rates`)."""

    def speed(self, header: HeaderT, plan: PlanT, machine: Machine) -> Speed | None:
        """Predicted; None for models that generate no text."""
        ...

    def alike(self, header: HeaderT, wish: Wish, plan: PlanT, fits: Callable[[PlanT], bool]) -> Iterator[PlanT]:
        """Other plans that fit and give up no more than this one: the same context, sequences and KV cache."""
        ...
