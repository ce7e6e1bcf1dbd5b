"""What a node of a cluster reports, what is known of a request, and the constants of the choice. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class HeldModel:
    """One model of a node, as the node last told of it."""

    state: str
    """A word of `server.scheduling.decisions.ModelState`."""
    running: int = 0
    waiting: int = 0
    parallel: int = 1
    needs_bytes: int = 0
    """What it holds, or would reserve."""
    load_s: float | None = None
    """What its last load on this node took; None before the first."""
    pinned: bool = False

    @property
    def here(self) -> bool:
        """It serves, or is about to."""
        return self.state in ("ready", "loading")

    @property
    def leaves(self) -> bool:
        """Its bytes are about to come free."""
        return self.state in ("draining", "unloading")


@dataclass(frozen=True)
class NodeReport:
    """One node at one moment."""

    node: str
    life: str
    """Another one after each start of its server."""
    at_s: float
    free_bytes: int
    models: Mapping[str, HeldModel]


@dataclass(frozen=True)
class Ask:
    """What the choice goes by."""

    model: str
    head: str | None = None
    """Names the conversation; None where a request begins none."""
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Choice:
    """A node, the seconds until the answer is expected to begin there, and why it is this one."""

    node: str
    wait_s: float
    reason: str
    """`head`: it holds the conversation. `resident`: it holds the model. `load`: it has to load it."""


@dataclass(frozen=True)
class Weights:
    """The constants of the choice, in seconds where nothing else is said. `python -m bench cluster` tries others."""

    leave_s: float = 2.0
    """What another node than the conversation's has to win beside the prompt's computation."""
    tokens_per_s: float = 1500.0
    """Of a prompt that no cache holds."""
    job_s: float = 4.0
    """Of a request, before any of its model has ended."""
    load_s: float = 4.0
    """Of a load, before any has been reported."""
    copy: float = 2.0
    """Times the load of a model that another node holds: it takes a place from others."""
    crowd: float = 0.05
    """Of a request's own time, for each request that runs on the node already."""
    eviction: float = 8.0
    """Times the load of a model that leaves, if it is asked for again: those who use it wait, too."""
    turns: float = 2.0
    """Times the loads that a node has to do before, each with the turn of its model."""
    horizon_s: float = 300.0
    """In which a model that left is asked for again, or it was right to let it go."""
    down_s: float = 2.0
    """For which a node gets nothing after a request could not reach it, unless it has begun another life."""
    stale_s: float = 15.0
    """After which a node that reports nothing is silent."""
    silent_s: float = 60.0
    """What a silent node is charged with: it gets a request only where no other node is."""


@dataclass
class NodeState:
    """What the router keeps of a node between two reports."""

    report: NodeReport
    in_flight: dict[str, int] = field(default_factory=dict)
    """Model -> requests sent to it that have not ended."""
    n_in_flight: int = 0
    """Of all models."""
    load_since: dict[str, float] = field(default_factory=dict)
    """Model -> when a request was sent that makes the node load it; until the node reports it."""
    down_until: float = 0.0

    def answered(self, model: str) -> None:
        """A request has ended well: the model is here, whatever an older report says; its load is over."""
        held = self.report.models.get(model)
        if held is not None and held.state != "ready":
            after = replace(held, state="ready", waiting=0, running=0)
            self.report = replace(self.report, models={**self.report.models, model: after})

    def sent(self, model: str, change: int) -> int:
        """One request more or one less; how many of the model there are now."""
        n_now = self.in_flight[model] = self.in_flight.get(model, 0) + change
        self.n_in_flight += change
        return n_now
