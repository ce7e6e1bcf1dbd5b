"""What a node tells of itself to every edge: its address and a report, made of its own `/v1/status` and capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import jiter

from server.cluster.facts import HeldModel, NodeReport

_PARALLEL: Final = 2
"""Requests at once of a model whose plan is not known yet: as the configuration has it where it says nothing."""


@dataclass(frozen=True)
class Notice:
    """One node, as it is handed from process to process."""

    node: str
    url: str
    life: str
    free_bytes: int
    models: dict[str, HeldModel]
    age_s: float = 0.0
    """Since it was heard."""

    def report(self, now: float) -> NodeReport:
        """For a router whose clock is at `now`."""
        return NodeReport(self.node, self.life, now - self.age_s, self.free_bytes, self.models)


@dataclass
class Watch:
    """Looks at one node again and again, and learns what it does not tell at every moment."""

    node: str
    url: str
    life: str
    client: httpx2.AsyncClient
    _load_s: dict[str, float] = field(default_factory=dict)
    _needs: dict[str, int] = field(default_factory=dict)
    _parallel: dict[str, int] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)
    """Model -> how often its needs were asked for."""

    async def look(self) -> Notice:
        """Its state now; on the way the needs of one unloaded model are asked for. Raises httpx2.HTTPError."""
        try:
            return await self._look()
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise httpx2.DecodingError(f"{self.url} is no server of ours: {type(problem).__name__}") from None

    async def _look(self) -> Notice:
        answer = await self.client.get(self.url + "/v1/status")
        answer.raise_for_status()
        status = jiter.from_json(answer.content)
        memory = status["memory"]
        free_bytes = max(0, memory["budget_bytes"] - memory["reserved_bytes"])
        await self._ask_needs([model["name"] for model in status["models"] if model["state"] == "unloaded"])
        models = {model["name"]: self._held(model) for model in status["models"]}
        return Notice(self.node, self.url, self.life, free_bytes, models)

    async def _ask_needs(self, unloaded: list[str]) -> None:
        if not unloaded:
            return
        name = min(unloaded, key=lambda one: self._asked.get(one, 0))
        if self._asked.get(name, 0) and name in self._needs:
            return
        self._asked[name] = self._asked.get(name, 0) + 1
        answer = await self.client.get(self.url + "/v1/capacity", params={"model": name})
        if answer.status_code == httpx2.codes.OK:
            told = jiter.from_json(answer.content)
            self._needs[name] = told["total_bytes"]
            self._parallel[name] = told["plan"]["parallel"] or _PARALLEL

    def _held(self, model: Mapping[str, Any]) -> HeldModel:
        name = model["name"]
        if model["load_s"] is not None:
            self._load_s[name] = model["load_s"]
        if model["predicted_bytes"] is not None:
            self._needs[name] = model["predicted_bytes"]
        if model["parallel"] is not None:
            self._parallel[name] = model["parallel"]
        return HeldModel(
            model["state"],
            running=model["busy"],
            waiting=model["waiting"],
            parallel=self._parallel.get(name, _PARALLEL),
            needs_bytes=self._needs.get(name, 0),
            load_s=self._load_s.get(name),
            pinned=model["pinned"],
        )
