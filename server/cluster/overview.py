"""What the edge of a cluster itself answers: whether it lives, which nodes there are, and the metrics of all."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

import httpx2

from server.cluster.federation import federated
from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.cluster.facts import NodeState
    from server.cluster.router import Router

METRICS_WITHIN_S: Final = 2.0
_JSON: Final = b"application/json"
_TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"


class Overview:
    """One per edge, which keeps `urls`. `key` is the cluster's own on its nodes; without `metrics` there is no page."""

    def __init__(
        self, router: Router, urls: Mapping[str, str], client: httpx2.AsyncClient, *, key: str | None, metrics: bool
    ) -> None:
        self._router = router
        self._urls = urls
        self._client = client
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._has_metrics = metrics
        self._n_sent: dict[tuple[str, str], int] = {}
        """(node, reason) -> requests."""
        self._n_repeats = 0

    def sent(self, node: str, reason: str, *, again: bool) -> None:
        """Count a request on its way to a node; `again`: another one was asked before and gave no token."""
        self._n_sent[node, reason] = self._n_sent.get((node, reason), 0) + 1
        self._n_repeats += again

    def forget(self, node: str) -> None:
        """The node is no more: its counts leave the page, as its own metrics do."""
        self._n_sent = {of: count for of, count in self._n_sent.items() if of[0] != node}

    async def answer(self, path: str) -> tuple[bytes, bytes] | None:
        """Content type and body; None where a node has to answer. Raises ApiError 503."""
        match path:
            case "/health":
                return _JSON, b'{"status":"ok"}'
            case "/ready":
                if not self._up():
                    raise self.no_node()
                return _JSON, b'{"status":"ready"}'
            case "/v1/cluster":
                return _JSON, json.dumps(self._status()).encode()
            case "/metrics" if self._has_metrics:
                return _TEXT, (await self._metrics()).encode()
        return None

    def no_node(self) -> ApiError:
        """What a client is told where none could be reached in time."""
        n_up, n_known = len(self._up()), len(self._urls)
        return ApiError(
            503,
            f"No node could answer: {n_up} of {n_known} are up. hint: ask again; see `onecard cluster status`",
            type="server_error",
            code="no_node",
            headers={"retry-after": "2"},
        )

    def lost(self, n_nodes: int) -> ApiError:
        """What a client is told whose request is given to no further node."""
        nodes = "A node" if n_nodes == 1 else f"{n_nodes} nodes"
        told = f"{nodes} ended with this request before its first token. hint: see what the log of the nodes says"
        return ApiError(502, told, type="server_error", code="nodes_lost")

    def _up(self) -> list[str]:
        now = time.monotonic()
        return sorted(node for node in self._urls if self._router.is_up(node, now))

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        states = sorted(self._router.nodes.items())
        return {"nodes": [self._node(name, state, now) for name, state in states], "repeats": self._n_repeats}

    def _node(self, name: str, state: NodeState, now: float) -> dict[str, Any]:
        return {
            "node": name,
            "url": self._urls[name],
            "up": self._router.is_up(name, now),
            "in_flight": state.n_in_flight,
            "free_bytes": state.report.free_bytes,
            "silent_s": round(now - state.report.at_s, 1),
            "models": {
                model: {"state": held.state, "running": held.running, "waiting": held.waiting}
                for model, held in state.report.models.items()
                if held.state != "unloaded" or held.waiting
            },
        }

    async def _metrics(self) -> str:
        nodes = self._up()
        get = self._client.get
        asked = (get(self._urls[node] + "/metrics", headers=self._headers, timeout=METRICS_WITHIN_S) for node in nodes)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        pages = {
            node: answer.text
            for node, answer in zip(nodes, answers, strict=True)
            if isinstance(answer, httpx2.Response) and answer.is_success
        }
        own = "\n".join(self._own_series(n_read=len(pages))) + "\n"
        return await asyncio.to_thread(federated, pages) + own

    def _own_series(self, *, n_read: int) -> list[str]:
        return [
            "# HELP onecard_cluster_nodes Nodes of the cluster, and those whose metrics this page has.",
            "# TYPE onecard_cluster_nodes gauge",
            f'onecard_cluster_nodes{{state="known"}} {len(self._urls)}',
            f'onecard_cluster_nodes{{state="read"}} {n_read}',
            "# HELP onecard_cluster_requests_total Requests sent to a node, by what it was chosen for.",
            "# TYPE onecard_cluster_requests_total counter",
            *(
                f'onecard_cluster_requests_total{{node="{node}",reason="{reason}"}} {count}'
                for (node, reason), count in sorted(self._n_sent.items())
            ),
            "# HELP onecard_cluster_repeats_total Requests that were given to another node before their first token.",
            "# TYPE onecard_cluster_repeats_total counter",
            f"onecard_cluster_repeats_total {self._n_repeats}",
        ]
