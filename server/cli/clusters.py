"""What `onecard cluster` does: Ray started or joined, the application run on it, and told of."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from server.cli.client import Client, client_for
from server.cli.cluster_end import ClusterNote, Signals, end_cluster, until_deleted, until_drained
from server.cli.configuration import loaded_or_exit, refuse_open_listener
from server.cli.console import CliError, ExitCode, say, write
from server.cli.doctor.setup import look_at_port
from server.cluster.node_server import NodeOrder

if TYPE_CHECKING:
    from server.cluster.on_ray import ClusterOrder
    from server.settings.config import Settings

OBJECT_STORE_BYTES: Final = 80 * 2**20
"""Nothing of requests or answers lies in it."""
_READY_WITHIN_S: Final = 180.0
_DOWN_WITHIN_S: Final = 60.0
"""Beyond what the nodes may drain."""
_POLL_S: Final = 0.3
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    nodes: int
    most: int
    idle_s: float
    host: str | None
    port: int | None
    address: str | None
    cpus: float
    gpus: float | None


def bring_up(config: Path | None, wish: Wish) -> None:
    """Returns after a signal where Ray is ours, and once all nodes are up where it was there before."""
    if wish.most < wish.nodes:
        raise CliError(f"--most {wish.most} is less than --nodes {wish.nodes}", ExitCode.USAGE)
    settings = _settings(config, wish)
    own = wish.address is None
    if own:
        _refuse_second(settings)
    ray, serve = _ray()
    say("starting Ray on this machine" if own else f"joining Ray at {wish.address}")
    _begin(ray, wish)
    from server.cluster.on_ray import APPLICATION, Ending

    signals = Signals()
    has_drained = False
    try:
        url = _run(ray, serve, settings, config, wish, signals)
        note = ClusterNote(os.getpid(), url, settings.server.drain_s)
        if own or _running() is None:
            note.save()
        if wish.address is not None:
            _tell_joined(wish.address, f"{wish.nodes} nodes serve {url}/v1", was_told=signals.told())
        elif not signals.told():
            write(f"{wish.nodes} nodes serve {url}/v1\nCtrl-C or `onecard cluster down` ends them")
            signals.told(within_s=None)
            has_drained = end_cluster(serve, APPLICATION, Ending().nodes_left, note, signals.twice)
    finally:
        if own and not has_drained:
            with contextlib.suppress(ray.exceptions.RayError):
                Ending()
                serve.shutdown()
        if own:
            ClusterNote.remove()
        ray.shutdown()


def _tell_joined(address: str, served: str, *, was_told: bool) -> None:
    """Of nodes on a Ray that runs on. Raises CliError where a signal has ended the wait for them."""
    down = f"`onecard cluster down --address {address}` ends them"
    if was_told:
        raise CliError(f"the nodes go on starting, and were not waited for. hint: {down}", ExitCode.INTERRUPTED)
    write(f"{served}\n{down}")


def read_status(url: str | None, config: Path | None) -> dict[str, Any]:
    """What the edge tells. Raises CliError."""
    note = ClusterNote.read()
    client = client_for(url or (note.url if note else None), loaded_or_exit(config).settings)
    answer = client.response("/v1/cluster")
    if answer.status_code == 404:
        raise CliError(f"{client.base} is a server, and no cluster. hint: onecard ps")
    told: dict[str, Any] = client.answered(answer)
    return told


def show_status(told: dict[str, Any]) -> None:
    """As a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in ("NODE", "UP", "REQUESTS", "FREE", "MODELS"):
        table.add_column(name)
    for node in told["nodes"]:
        models = ", ".join(
            f"{name} ({held['state']}" + (f", {held['waiting']} wait)" if held["waiting"] else ")")
            for name, held in sorted(node["models"].items())
        )
        up = "yes" if node["up"] else f"silent for {node['silent_s']:.0f} s"
        table.add_row(node["node"], up, str(node["in_flight"]), f"{node['free_bytes'] / 2**30:.1f} GiB", models or "-")
    Console().print(table)


def take_down(address: str | None) -> None:
    """End what `up` began. Raises CliError."""
    if address is not None:
        ray, serve = _ray()
        _join(ray, address)
        from server.cluster.on_ray import APPLICATION, LEAVE_WITHIN_S, Ending, end

        signals = Signals()
        how = "may end within [server] drain_s. hint: Ctrl-C ends them now"
        until_drained(Ending().nodes_left, within_s=LEAVE_WITHIN_S, how=how, hurried=signals.once, tell=say)
        has_ended = until_deleted(serve, APPLICATION, signals.once)
        end()
        ray.shutdown()
        left = "" if has_ended else "; the edge ends once its clients have read their answers"
        write(f"the nodes have ended{left}; Ray runs on")
        return
    note = _running()
    if note is None:
        raise CliError("no cluster of this user runs on this machine. hint: --address for one on a running Ray")
    os.kill(note.pid, signal.SIGTERM)
    within_s = note.drain_s + _DOWN_WITHIN_S
    deadline, before = time.monotonic() + within_s, note.waits_for
    while _is_ours(note.pid):
        if time.monotonic() > deadline:
            raise CliError(f"the cluster has not ended within {within_s:g} s. hint: kill {note.pid}")
        if (now := ClusterNote.read()) is not None and now.waits_for != before:
            before = now.waits_for
            say(before)
        time.sleep(_POLL_S)
    write("the nodes have ended")


def _running() -> ClusterNote | None:
    """The cluster of this user on this machine."""
    note = ClusterNote.read()
    return note if note is not None and _is_ours(note.pid) else None


def _refuse_second(settings: Settings) -> None:
    """Ray's proxies share a port with whatever listens there, and each would get some of the requests."""
    if (note := _running()) is not None:
        raise CliError(f"a cluster runs at {note.url}. hint: `onecard cluster down` ends it")
    seen = look_at_port(settings)
    if seen.taken:
        raise CliError(f"{seen.url} is taken. hint: end what listens there, or --port", ExitCode.USAGE)


def _settings(config: Path | None, wish: Wish) -> Settings:
    settings = loaded_or_exit(config).settings
    given = {name: value for name, value in (("host", wish.host), ("port", wish.port)) if value is not None}
    settings = settings.model_copy(update={"server": settings.server.model_copy(update=given)})
    refuse_open_listener(settings)
    if wish.address is not None and not settings.every_key:
        raise CliError(
            "nodes on other machines listen beyond loopback, and there is no key. hint: [server] api_keys",
            ExitCode.USAGE,
        )
    return settings


def _ray() -> tuple[Any, Any]:
    """Ray and Serve, told to be quiet. Raises CliError where they are not installed."""
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    try:
        import ray
        from ray import serve
    except ImportError:
        raise CliError("Ray is not installed. hint: .venv/bin/pip install -e '.[ray]' in the clone") from None
    return ray, serve


def _begin(ray: Any, wish: Wish) -> None:
    """Raises CliError."""
    if wish.address is not None:
        _join(ray, wish.address)
        return
    try:
        ray.init(
            num_cpus=max(2, round(wish.most * wish.cpus) + 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    except Exception as problem:  # its own is a bare one, where its processes did not start in time
        raise CliError(f"Ray did not start: {str(problem).splitlines()[0]}") from None


def _join(ray: Any, address: str) -> None:
    """Raises CliError."""
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise CliError(f"no Ray answers at {address}: {str(problem).splitlines()[0]}") from None


def _run(ray: Any, serve: Any, settings: Settings, config: Path | None, wish: Wish, signals: Signals) -> str:
    """Run the application and wait for its nodes; the address. Raises CliError."""
    from server.cluster.on_ray import APPLICATION, application, begin

    order = _order(ray, settings, config, wish)
    host = settings.server.host
    listening = {"host": "127.0.0.1" if host == "localhost" else host, "port": settings.server.port}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells a person to worry about options that hold
    say(f"{wish.nodes} nodes start")
    serve.start(http_options=listening, proxy_location="HeadOnly" if wish.address is None else "EveryNode")
    begin()
    serve.run(application(order), name=APPLICATION, route_prefix="/")
    reachable = "127.0.0.1" if listening["host"] in ("0.0.0.0", "::") else listening["host"]  # noqa: S104
    url = f"http://{reachable}:{listening['port']}"
    client = Client(url, key=settings.every_key[0] if settings.every_key else None)
    deadline = time.monotonic() + _READY_WITHIN_S
    while not signals.told(within_s=_POLL_S):
        with contextlib.suppress(CliError):
            if sum(node["up"] for node in client.get("/v1/cluster")["nodes"]) >= wish.nodes:
                break
        if time.monotonic() > deadline:
            raise CliError(
                f"{wish.nodes} nodes were not up within {_READY_WITHIN_S:g} s. hint: logs are below "
                f"{tempfile.gettempdir()}/ray"
            )
    return url


def _order(ray: Any, settings: Settings, config: Path | None, wish: Wish) -> ClusterOrder:
    gpus_per_node = _gpus_per_node(ray.cluster_resources().get("GPU", 0.0), wish)
    from server.cluster.on_ray import ClusterOrder, keys_of

    return ClusterOrder(
        settings,
        NodeOrder(
            None if config is None else config.resolve(),
            "127.0.0.1" if wish.address is None else "",
            keys=keys_of(settings),
            drain_s=settings.server.drain_s,
        ),
        n_nodes=wish.nodes,
        most_nodes=wish.most,
        gpus_per_node=gpus_per_node,
        cpus_per_node=wish.cpus,
        idle_s=wish.idle_s,
    )


def _gpus_per_node(n_cards: float, wish: Wish) -> float:
    """Cards of one node. Raises CliError where this machine has too few; a Ray that runs may get more machines."""
    gpus = float(n_cards > 0) if wish.gpus is None else wish.gpus
    if wish.address is None and gpus * wish.nodes > n_cards:
        share = math.floor(100 / math.ceil(wish.nodes / n_cards)) / 100 if n_cards else 0
        raise CliError(
            f"{wish.nodes} nodes need {gpus * wish.nodes:g} cards, and this machine has {n_cards:g}. "
            f"hint: --gpus {share:g}, and [memory] budget for each node's part"
        )
    return gpus


def _is_ours(pid: int) -> bool:
    """Whether the process is a `cluster up` and not another that has its number now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return "cluster" in words and "up" in words
