"""The pool's side of one model: its worker, its last run-time figures, its series, and who waits for it by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from server.pool.status import Drafted, ModelStatus, Pace, model_status

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from backends.border.worker import Exit, Worker
    from backends.messages import Device, ErrorCode, Figure, Ready
    from server.memory.files import FileFacts, FileKey
    from server.memory.ledger import Reservation
    from server.metrics import ModelMetrics
    from server.pool.speed_meter import SpeedMeter
    from server.scheduling.scheduler import ModelView
    from server.settings.catalog import CatalogEntry


NO_LONGER: Final = "the model '{}' is no longer configured"
_TELLING_SHARE: Final = 0.1
_TELLING_BYTES: Final = 1024
_SMOOTHING: Final = 0.3


class PoolError(Exception):
    """A load or unload that the operator asked for and that did not come to be."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message


@dataclass
class Resident:
    """One model of the catalogue, loaded or not; its state is the scheduler's."""

    entry: CatalogEntry
    metrics: ModelMetrics
    worker: Worker | None = None
    ready: Ready | None = None
    """Of the last successful load."""
    load_started_at: float = 0.0
    load_cancelled: bool = False
    tried_key: FileKey | None = None
    """Which state of the files the last load was of; None where there were none."""
    loaded: float = 0.0
    """The share of the load under way that is done."""
    last_load_s: float | None = None
    """What the last load took that succeeded."""
    load_told_at: float = 0.0
    """When an event told of it last."""
    ready_at: float | None = None
    meter: SpeedMeter | None = None
    """Of the load that is ready; None where no speed is foretold."""
    tokens_per_byte: float = 0.25
    """Of prompts, as measured; before the first one that of English."""
    pace: Pace = field(default_factory=Pace)
    drafted: Drafted = field(default_factory=Drafted)
    """Since it was loaded."""
    load_waiters: list[asyncio.Future[None]] = field(default_factory=list)
    gone_waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The model's name, which is asked for at every turn."""
        self.name = self.entry.name

    def is_one_of(self, residents: Mapping[str, Resident]) -> bool:
        """Whether it is still a model of the pool."""
        return residents.get(self.name) is self

    def load_wait_s(self, submitted_at: float) -> float | None:
        """What a job waited for the load; None when the model was ready before it came."""
        if self.ready_at is None or self.ready_at <= submitted_at:
            return None
        return self.ready_at - max(submitted_at, self.load_started_at)

    def load_left_s(self, now: float, guess_s: float) -> float:
        """What is left of the load under way: by its own pace once that shows, until then the guess."""
        if self.loaded < _TELLING_SHARE:
            return guess_s
        return (now - self.load_started_at) * (1 - self.loaded) / self.loaded

    def left_of_load_s(self, now: float) -> float | None:
        """What is left of the load under way, by its own pace or by the last load; None where neither tells."""
        guess_s = self.last_load_s and max(0.0, self.last_load_s - (now - self.load_started_at))
        left_s = self.load_left_s(now, -1.0 if guess_s is None else guess_s)
        return left_s if left_s >= 0 else None

    def layers_on(self, device: Device) -> tuple[int, int] | None:
        """Layers on the card and layers in all, for a model that should be on one."""
        if self.ready is None or self.ready.layers is None or device == "cpu":
            return None
        return self.ready.layers.on_card, self.ready.layers.total

    @property
    def kept_from_card(self) -> dict[str, Figure]:
        """What the CPU computes of layers that are on the card, by the configuration's names."""
        return self.ready.layers.told if self.ready is not None and self.ready.layers is not None else {}

    def count_prompt(self, n_tokens: int, n_bytes: int) -> None:
        """A prompt was read: how long others will be can be guessed from its bytes."""
        if n_bytes >= _TELLING_BYTES:
            self.tokens_per_byte += _SMOOTHING * (n_tokens / n_bytes - self.tokens_per_byte)

    def count_ready(self, reservation: Reservation, load_s: float) -> None:
        """A load has succeeded, with this in the ledger."""
        self.metrics.loads["ok"].inc()
        self.metrics.load_seconds.observe(load_s)
        for memory, holding in (("device", reservation.device), ("host", reservation.host)):
            self.metrics.measured_bytes[memory].set(holding.measured_bytes or 0)
            for part, n_bytes in holding.predicted.by_name.items():
                self.metrics.predicted_bytes[memory, part].set(n_bytes)
        if self.ready is not None and (layers := self.ready.layers) is not None:
            self.metrics.gpu_layers.set(layers.on_card)
            self.metrics.layers.set(layers.total)
            for key, gauge in self.metrics.host_layers.items():
                gauge.set({"expert_layers": layers.experts_on_host, "ffn_layers": layers.ffn_on_host}[key])

    def publish_speed(self) -> None:
        """Show what one request alone was predicted to get, and gets."""
        told = self.meter.status if self.meter is not None else None
        for (phase, figure), gauge in self.metrics.speed.items():
            name = f"{'measured_' if figure == 'measured' else ''}{phase}_tokens_per_s"
            gauge.set(getattr(told, name, None) or 0)

    def count_exit(self, how: Exit, *, was_ready: bool) -> str:
        """A worker has ended; in one word, how."""
        self.meter = None
        self.metrics.gpu_layers.set(0)
        self.metrics.layers.set(0)
        self.metrics.kv_usage.set(0)
        for gauge in (
            *self.metrics.host_layers.values(),
            *self.metrics.measured_bytes.values(),
            *self.metrics.predicted_bytes.values(),
        ):
            gauge.set(0)
        if how.code is None:
            if not was_ready:
                self.metrics.loads["cancelled"].inc()
            return "unloaded"
        if was_ready:
            self.metrics.crashes.inc()
            self.metrics.evictions["crash"].inc()
            return "crashed"
        self.count_load_failure(how.code)
        return "load_failed"

    def count_load_failure(self, code: ErrorCode) -> None:
        """A load has failed, in a worker or before there was one."""
        no_memory = code in ("cannot_fit", "memory_busy", "out_of_memory")
        self.metrics.loads["oom" if no_memory else "timeout" if code == "worker_hung" else "error"].inc()

    def tell_loaded(self) -> None:
        """Wake those who asked for the load."""
        _settle(self.load_waiters, None)

    def tell_gone(self, code: ErrorCode, message: str, *, comes_again: bool = False) -> None:
        """Wake all that wait: there is no worker any more. Who waits for a load goes on where another one follows."""
        if not comes_again:
            _settle(self.load_waiters, PoolError(code, message))
        _settle(self.gone_waiters, None)

    def status(
        self,
        view: ModelView,
        reservation: Reservation | None,
        unusable: str | None,
        now: float,
        facts: FileFacts | None = None,
        *,
        on_card: bool = False,
        loading: bool = False,
        context_max: int | None = None,
    ) -> ModelStatus:
        """The model's line."""
        worker = self.worker
        return model_status(
            self.entry,
            view,
            self.ready if worker is not None and worker.ready is not None else None,
            reservation,
            pid=worker.pid if worker is not None else None,
            tokens_per_s=self.pace.per_s(now),
            drafted=self.drafted,
            unusable=unusable,
            now=now,
            on_card=on_card,
            facts=facts,
            speed=self.meter.status if self.meter is not None else None,
            loaded=self.loaded if loading else None,
            load_left_s=self.left_of_load_s(now) if loading else None,
            context_max=context_max,
        )


def _settle(waiters: list[asyncio.Future[None]], error: PoolError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(None)
    waiters.clear()
