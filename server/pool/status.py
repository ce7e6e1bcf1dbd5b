"""What the pool tells about itself: the JSON shape of `ps --json` and `/v1/status`, and what routes ask of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from backends.backend import Header
from backends.messages import Figure, KvOffload, Ready, Step
from server.pool.speed_meter import LoadedSpeed
from server.scheduling.decisions import ModelState
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from server.memory.files import FileFacts
    from server.memory.ledger import Holding, Reservation
    from server.memory.memory import Memory
    from server.scheduling.scheduler import ModelView
    from server.settings.catalog import CatalogEntry

_PACE_WINDOW_S: Final = 1.0


@dataclass
class Pace:
    """Tokens per second, measured over about a second at a time."""

    _since: float = 0.0
    _n_tokens: int = 0
    _per_s: float = 0.0

    def count(self, n_tokens: int, now: float) -> None:
        """Tokens of one step."""
        self._n_tokens += n_tokens
        if now - self._since >= _PACE_WINDOW_S:
            fresh = now - self._since < 2 * _PACE_WINDOW_S
            self._per_s = self._n_tokens / (now - self._since) if fresh else 0.0
            self._since, self._n_tokens = now, 0

    def per_s(self, now: float) -> float:
        """The last full measurement; 0 when nothing has been computed lately."""
        return self._per_s if now - self._since < 2 * _PACE_WINDOW_S else 0.0


@dataclass
class Drafted:
    """What was drafted for a loaded model, and what of it came true."""

    n_tokens: int = 0
    n_accepted: int = 0

    def count(self, step: Step) -> None:
        """Take in a step's."""
        for n_tokens, n_accepted in step.drafted.values():
            self.n_tokens += n_tokens
            self.n_accepted += n_accepted


class HostStatus(msgspec.Struct, frozen=True):
    """The budget of host memory, in bytes."""

    budget_bytes: int
    reserved_bytes: int
    other_bytes: int
    over_bytes: int = 0
    total_bytes: int = 0


class MemoryStatus(msgspec.Struct, frozen=True):
    """The budget of the memory in which models compute, in bytes, and what there is beside it."""

    device: str
    """`cuda` or `cpu`."""
    budget_bytes: int
    reserved_bytes: int
    other_bytes: int
    over_bytes: int = 0
    """By how much models hold more than the budget."""
    prefix_cache_bytes: int = 0
    """Host memory that cached prefixes take, of all models, loaded or not."""
    prefix_cache_reserved_bytes: int = 0
    """What is reserved for them in the budget of host memory."""
    prefix_cache_max_bytes: int = 0
    """What they may take at most."""
    template_process_bytes: int = 0
    """Host memory of the template process, which has no model: paid from what the budget leaves, never from it."""

    device_name: str = ""
    """The card's; empty on the CPU."""
    device_total_bytes: int = 0
    warnings: list[str] = []
    """A graphics card that is there and unused, and why."""
    host: HostStatus | None = None
    """Host memory; without a card the same budget once more."""
    lent_bytes: int = 0
    """Of what is reserved, what is lent to other programs."""
    headroom_bytes: int = 0
    """What is left free on the card while another program's use of it grows."""


def memory_status(memory: Memory, *, template_process_bytes: int = 0) -> MemoryStatus:
    """The budgets at this moment; the template process is told apart from other programs."""
    account, host, other = memory.account, memory.ledger.host, memory.other
    beside = HostStatus(
        budget_bytes=host.budget_bytes,
        reserved_bytes=host.reserved_bytes,
        other_bytes=max(0, other.host - template_process_bytes),
        over_bytes=host.over_bytes,
        total_bytes=memory.total.host,
    )
    on_card = memory.device == "cuda"
    return MemoryStatus(
        device=memory.device,
        budget_bytes=account.budget_bytes,
        reserved_bytes=account.reserved_bytes,
        other_bytes=other.device if on_card else beside.other_bytes,
        over_bytes=account.over_bytes,
        prefix_cache_bytes=memory.prefix_cache.used_bytes,
        prefix_cache_reserved_bytes=host.prefix_cache_bytes,
        prefix_cache_max_bytes=memory.prefix_cache.max_bytes,
        template_process_bytes=template_process_bytes,
        device_name=memory.device_name,
        device_total_bytes=memory.total.device if on_card else memory.total.host,
        warnings=memory.warnings,
        host=beside,
        lent_bytes=memory.lent_bytes,
        headroom_bytes=memory.neighbours.headroom_bytes,
    )


class HoldingStatus(msgspec.Struct, frozen=True):
    """What a model holds of one memory, in bytes."""

    predicted_bytes: int
    measured_bytes: int | None
    parts: dict[str, int]
    """By component: as measured, until then as predicted."""


def holding_status(holding: Holding | None) -> HoldingStatus | None:
    """None where the model holds nothing of the memory."""
    if holding is None or not (holding.predicted.total_bytes or holding.measured_bytes):
        return None
    return HoldingStatus(holding.predicted.total_bytes, holding.measured_bytes, holding.parts)


class SpeculationStatus(msgspec.Struct, frozen=True):
    """Tokens drafted for a model, and those of them that came true."""

    mode: str
    drafted_tokens: int
    accepted_tokens: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One model of the catalogue."""

    name: str
    state: str
    backend: str
    predicted_bytes: int | None
    measured_bytes: int | None
    parts: dict[str, int]
    context: int | None
    """None while it is not loaded, and of a model that reads no text."""
    parallel: int | None
    busy: int
    """Jobs in the worker."""
    idle_s: float | None
    pinned: bool
    waiting: int = 0
    tokens_per_s: float | None = None
    unload_in_s: float | None = None
    """None while it is busy or not loaded, and where it stays."""
    keep_alive_s: float = -1.0
    """How long it stays when idle, as its last request or its configuration says; -1: for ever."""
    gpu_layers: int | None = None
    n_layers: int | None = None
    pid: int | None = None
    load_s: float | None = None
    """What the engine itself took for the load of the resident model, without its process's start."""
    last_error: str | None = None
    prediction_error: float | None = None
    """Measured / predicted - 1 of this load; None before the measurement."""
    unusable: str | None = None
    """What is wrong with its files, as of the last look; None where nothing is."""
    file: str | None = None
    """Tells its file from every other on its machine; None where there is none, or no look at it yet."""
    sampling: dict[str, float] = {}
    """How tokens are chosen where a request does not say, by the names of a request's fields."""
    device: HoldingStatus | None = None
    """What it holds of the card; None where it holds nothing of one."""
    host: HoldingStatus | None = None
    """What it holds of host memory beside a card; the figures above are of the memory in which it computes."""
    expert_layers: int = 0
    """Layers on the card whose experts lie in host memory."""
    ffn_layers: int = 0
    """The same of their other feed-forward weights."""
    kv_type: str | None = None
    """Of the KV cache; of keys and of values where they differ: `q8_0/q4_0`. None while it is not loaded."""
    kv_offload: KvOffload = "card"
    """Where the KV cache of its layers on the card lies."""
    speculation: SpeculationStatus | None = None
    """Of a loaded model that generates text, what was drafted for it since it was loaded."""
    load_left_s: float | None = None
    """What is left of a load under way, by its own pace or by the last one."""
    load_mode: str | None = None
    """How the loaded model's file got into memory: `mmap`, `direct` or `lock`; None of engines with one way only."""
    speed: LoadedSpeed | None = None
    """What one request alone was predicted to get of the loaded model, and gets; None where that is not foretold."""
    context_max: int | None = None
    """What `context` may grow to, beside pinned models; the same as it where it does not grow. None where that is not
    known."""
    facts: dict[str, Figure] = {}
    """What only its sort of model tells of itself while it is loaded, by the names of its backend."""
    loaded: float | None = None
    """The share of a load that is done, 0 to 1; None while it is not loading."""


class QueueStatus(msgspec.Struct, frozen=True):
    """Jobs waiting for one model."""

    model: str
    waiting: int


class TrainingStatus(msgspec.Struct, frozen=True):
    """The fine-tuning job that runs."""

    id: str
    model: str
    """The base that it teaches."""
    stands_still: bool
    """While a request is answered."""
    step: int
    """The last that was done; 0: it is still being loaded."""
    steps: int
    loss: float | None
    seconds_left: float | None
    device_bytes: int
    host_bytes: int


class Status(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    memory: MemoryStatus
    models: list[ModelStatus]
    queue: list[QueueStatus]
    training: TrainingStatus | None = None
    """None while no job runs; those that wait are at `/v1/fine_tuning/jobs`."""
    unknown_names: list[str] = []
    """A sentence for each name of the configuration that is no model now: one to preload, of a key, to draft."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it."""

    state: ModelState
    ready: Ready | None
    """Run-time figures of the last successful load."""
    header: Header | None
    context_max: int | None
    """What its context may grow to; of a fixed one what it is. None where that is not known."""
    last_error: str | None
    unusable: str | None
    """What is wrong with its files, as of the last look."""
    file: str | None = None
    """Tells its file from every other on its machine."""
    changed_ns: int = 0
    """When its file was changed last, since 1970."""


def model_status(
    entry: CatalogEntry,
    view: ModelView,
    ready: Ready | None,
    reservation: Reservation | None,
    *,
    pid: int | None,
    tokens_per_s: float,
    drafted: Drafted,
    unusable: str | None,
    now: float,
    on_card: bool,
    facts: FileFacts | None = None,
    loaded: float | None = None,
    load_left_s: float | None = None,
    speed: LoadedSpeed | None = None,
    context_max: int | None = None,
) -> ModelStatus:
    """One model's line, from what its owners know; `ready` and `reservation` only while it is resident."""
    config = entry.config
    text, layers = (ready.text, ready.layers) if ready else (None, None)
    idle_s = None if view.idle_since is None else max(0.0, now - view.idle_since)
    device = holding_status(reservation.device) if reservation else None
    host = holding_status(reservation.host) if reservation else None
    main = host if device is None else device
    return ModelStatus(
        name=entry.name,
        state=view.state.value,
        backend=entry.backend,
        predicted_bytes=main.predicted_bytes if main else None,
        measured_bytes=main.measured_bytes if main else None,
        parts=main.parts if main else {},
        context=text.context if text else None,
        parallel=ready.parallel if ready else None,
        busy=view.running,
        idle_s=idle_s,
        pinned=config.pinned,
        waiting=view.waiting,
        tokens_per_s=round(tokens_per_s, 1) if ready else None,
        unload_in_s=None if view.unload_at is None else max(0.0, view.unload_at - now),
        keep_alive_s=view.keep_s,
        gpu_layers=layers.on_card if layers else None,
        n_layers=layers.total if layers else None,
        pid=pid,
        load_s=ready.load_s if ready else None,
        last_error=view.last_error,
        prediction_error=_prediction_error(main),
        unusable=unusable,
        file=facts.identity if facts else None,
        sampling=plain_sampling(config, facts.header if facts else None),
        device=device if on_card else None,
        host=host if on_card else None,
        speculation=SpeculationStatus(ready.generator.speculation, drafted.n_tokens, drafted.n_accepted)
        if ready and ready.generator
        else None,
        speed=speed if ready else None,
        load_left_s=None if load_left_s is None else round(load_left_s, 1),
        load_mode=ready.file.mode if ready and ready.file else None,
        context_max=context_max,
        facts=dict(ready.facts.told) if ready else {},
        loaded=loaded,
        kv_type=ready.generator.kv_type if ready is not None and ready.generator is not None else None,
        expert_layers=layers.experts_on_host if layers else 0,
        ffn_layers=layers.ffn_on_host if layers else 0,
        kv_offload="host" if layers is not None and layers.kv_on_host else "card",
    )


def _prediction_error(holding: HoldingStatus | None) -> float | None:
    if holding is None or holding.measured_bytes is None or holding.predicted_bytes == 0:
        return None
    return round(holding.measured_bytes / holding.predicted_bytes - 1, 4)
