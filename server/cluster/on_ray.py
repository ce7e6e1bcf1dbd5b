"""The application of Ray Serve: a deployment of nodes, each with a server of its own, and the edge as its ingress.

The one file that knows Ray; only `onecard cluster` imports it. Nodes tell a directory, a named actor, of themselves,
and edges ask it. Requests do not pass through Ray between edge and node.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray import serve

from server.cluster.application import Application
from server.cluster.directory import Directory, Heard
from server.cluster.labels import labelled_by_serve
from server.cluster.node_server import LOOK_EVERY_S, LOOK_WITHIN_S, NodeOrder, NodeServer
from server.cluster.scaling import nodes_wanted
from server.settings.config_source import load_settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from server.cluster.directory import Told
    from server.cluster.notices import Notice
    from server.settings.config import Settings

APPLICATION: Final = "onecard"
_MOST_FAILED_STARTS: Final = 6
_UNUSED_LOOKS: Final = 4
"""In a row, until a node that leaves is unused: edges hear of it twice a second."""
_WAITING, _BUSY = "num_requests_waiting", "share_of_places_taken"
_HEALTH_S: Final = 1.0
_LOOK_AT_REQUESTS_EVERY_S: Final = 0.2
"""Of a replica that is to end."""
_ANSWER_WITHIN_S: Final = 10.0
MORE_AFTER_S: Final = 5.0
"""Of full queues, until there is another node."""
IDLE_S: Final = 600.0
"""Without a waiting request, until there is one node less."""
LEAVE_WITHIN_S: Final = 600.0
"""A node that is one too many ends when its requests have ended, and then at the latest."""


@dataclass(frozen=True)
class ClusterOrder:
    """What a cluster is to be."""

    settings: Settings
    node: NodeOrder
    n_nodes: int
    most_nodes: int
    gpus_per_node: float
    cpus_per_node: float
    idle_s: float = IDLE_S


def directory() -> Any:
    """The actor, made where there is none."""
    made = ray.remote(Directory).options(
        name="directory",
        namespace=APPLICATION,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
    )
    return made.remote()


def begin() -> None:
    """Before the application runs."""
    ray.get(directory().begin.remote(), timeout=_ANSWER_WITHIN_S)


class Ending:
    """Nodes drain from now on, and edges take no request: said again at each look, for a directory that was lost."""

    def __init__(self) -> None:
        self._heard = Heard()
        self._look()

    def nodes_left(self) -> list[Notice]:
        """Those whose server has not ended yet, with what they told last."""
        with contextlib.suppress(ray.exceptions.RayError):  # it is lost, and another one begins
            while not self._look():
                time.sleep(LOOK_EVERY_S)
        return self._left

    def _look(self) -> bool:
        """Whether there are nodes, or surely none. Raises RayError."""
        told: Told = ray.get(directory().end.remote(), timeout=_ANSWER_WITHIN_S)
        self._left = self._heard.take(told)
        return bool(self._left) or told.settled


def end() -> None:
    """After it: nothing of the application is left."""
    ray.kill(directory())


class Node:
    """A replica of Serve that keeps one server up and tells of it."""

    def __init__(self, order: NodeOrder) -> None:
        name = f"node-{serve.get_replica_context().replica_id.unique_id}"
        host = order.host or ray.util.get_node_ip_address()
        self._server = NodeServer(name, replace(order, host=host))
        self._leave_within_s = order.drain_s + LOOK_WITHIN_S
        self._ends = False
        self._directory = directory()
        self._running = asyncio.create_task(self._server.run())
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        leaving_until = math.inf
        while not self._running.done() and time.monotonic() < leaving_until:
            if (notice := self._server.told()) is not None:
                self._directory.put.remote(notice)
            if leaving_until == math.inf and await self._cluster_ends():
                self._server.leave()
                leaving_until = time.monotonic() + self._leave_within_s
            await asyncio.wait({self._running}, timeout=LOOK_EVERY_S)
        await self._end()

    async def _cluster_ends(self) -> bool:
        with contextlib.suppress(ray.exceptions.RayError):  # it is lost, and another one begins
            self._ends = self._ends or bool(await self._directory.ends.remote())
        return self._ends

    async def _end(self) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})
        self._directory.drop.remote(self._server.name)

    def check_health(self) -> None:
        """Serve begins another replica, perhaps on another machine, where the server does not stay up."""
        if self._ends:
            return
        if self._server.n_failed >= _MOST_FAILED_STARTS or self._running.done():
            raise RuntimeError(f"the server of {self._server.name} ended {self._server.n_failed} times in a row")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of nodes goes by."""
        notice = self._server.notice
        models = () if notice is None else tuple(notice.models.values())
        taken = min(1.0, sum(model.running / model.parallel for model in models))
        return {_WAITING: float(sum(model.waiting for model in models)), _BUSY: taken}

    async def __del__(self) -> None:
        self._telling.cancel()
        self._directory.drop.remote(self._server.name)
        await self._until_unused()
        await self._end()

    async def _until_unused(self) -> None:
        """No request comes any more, once every edge has heard; those that run may end, unless the cluster ends."""
        until = time.monotonic() + LEAVE_WITHIN_S
        n_unused = 0
        while n_unused < _UNUSED_LOOKS and time.monotonic() < until and not await self._cluster_ends():
            notice = self._server.notice
            used = notice is not None and any(model.running or model.waiting for model in notice.models.values())
            n_unused = 0 if used else n_unused + 1
            await asyncio.sleep(LOOK_EVERY_S)


class EdgeReplica:
    """The ingress. Its application hears of nodes from the directory."""

    def __init__(self, order: ClusterOrder, _nodes: Any) -> None:
        self._order = order

    def __serve_build_asgi_app__(self) -> ASGIApp:
        told, heard = directory(), Heard()

        async def all_nodes() -> Sequence[Notice]:
            return heard.take(await told.told.remote())

        key = self._order.node.keys[0] if self._order.node.keys else None
        return labelled_by_serve(Application(self._order.settings, all_nodes, key=key, draining=lambda: heard.ends))


def by_waiting(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: from the queues of all nodes to their number."""
    told = context.aggregated_metrics or {}
    waiting, busy = (list(told.get(name, {}).values()) for name in (_WAITING, _BUSY))
    wanted = nodes_wanted(waiting, busy, context.target_num_replicas)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}


def build(arguments: dict[str, Any]) -> Any:
    """Of a Serve configuration file: `config` (on every machine), `nodes`, `most`, `idle` (seconds), `cpus`, `gpus`."""
    config = Path(arguments["config"])
    settings = load_settings(config, flags={}).settings
    n_nodes = int(arguments.get("nodes", 1))
    return application(
        ClusterOrder(
            settings,
            NodeOrder(config, "", keys=keys_of(settings), drain_s=settings.server.drain_s),
            n_nodes=n_nodes,
            most_nodes=int(arguments.get("most", n_nodes)),
            cpus_per_node=float(arguments.get("cpus", 1)),
            gpus_per_node=float(arguments.get("gpus", 1)),
            idle_s=float(arguments.get("idle", IDLE_S)),
        )
    )


def keys_of(settings: Settings) -> tuple[str, ...]:
    """The admin keys of nodes, one for the cluster itself first; none where the configuration has none at all."""
    return (secrets.token_urlsafe(32), *settings.server.admin_keys) if settings.every_key else ()


def application(order: ClusterOrder) -> Any:
    """What `serve.run` takes."""
    scaled: dict[str, Any] = {"num_replicas": order.n_nodes}
    if order.most_nodes > order.n_nodes:
        policy = {"policy_function": by_waiting}
        scaled = {
            "autoscaling_config": {
                "min_replicas": order.n_nodes, "max_replicas": order.most_nodes, "policy": policy,
                "metrics_interval_s": 1.0, "look_back_period_s": 5.0,
                "upscale_delay_s": MORE_AFTER_S, "downscale_delay_s": order.idle_s,
            }
        }  # fmt: skip
    grace_s = LEAVE_WITHIN_S + order.node.drain_s + 10  # an edge lives as long as streams of its nodes may
    nodes = serve.deployment(
        Node,
        name="nodes",
        ray_actor_options={"num_cpus": order.cpus_per_node, "num_gpus": order.gpus_per_node},
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_wait_loop_s=_LOOK_AT_REQUESTS_EVERY_S,
        graceful_shutdown_timeout_s=grace_s,
        **scaled,
    )
    edge = serve.deployment(
        serve.ingress()(EdgeReplica),
        name="edge",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100_000,
        graceful_shutdown_wait_loop_s=_LOOK_AT_REQUESTS_EVERY_S,
        graceful_shutdown_timeout_s=grace_s,
        health_check_period_s=_HEALTH_S,
    )
    return edge.bind(order, nodes.bind(order.node))
