"""The command itself: its options, one run of each rule, figures and a picture."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from bench.cluster import users
from bench.cluster.picture import as_svg
from bench.cluster.rules import Rule, rules
from bench.cluster.simulation import Simulation
from server.cluster.facts import Weights

STANDARD: Final = (8, 200, 20)
"""Nodes, users and models of the run whose figures have limits."""
SWAPS_LIMIT: Final = 0.5
P99_LIMIT: Final = 0.6
MOST_NODES: Final = 1000
MOST_MINUTES: Final = 20.0
NODE_MINUTES: Final = 5000
"""Of all nodes together, where nothing is said: more of them take less time each."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--nodes", type=int, default=STANDARD[0], help="1 to 1000, each with 11.2 GiB (default 8)")
    parser.add_argument("--users", type=int, help="who talk all the time (default 25 for each node)")
    parser.add_argument("--models", type=int, default=STANDARD[2], help="of 1.4 to 9.2 GiB (default 20)")
    parser.add_argument("--minutes", type=float, help=f"of simulated time (default 20; {NODE_MINUTES} over all nodes)")
    parser.add_argument("--seed", type=int, default=1, help="another one for other users (default 1)")
    parser.add_argument("--trace", type=Path, help="users from a file: a JSON object per request")
    parser.add_argument("--rules", help="which, with commas (default all)")
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Every rule on the same users; figures named for their rule."""
    if not 1 <= options.nodes <= MOST_NODES:
        raise SystemExit(f"--nodes is 1 to {MOST_NODES}")
    n_users = options.users or 25 * options.nodes
    found: dict[str, dict[str, float]] = {}
    known = list(_makers(options))
    chosen = options.rules.split(",") if options.rules else known
    for name in chosen:
        if name not in known:
            raise SystemExit(f"--rules: there is no '{name}'. hint: {', '.join(known)}")
    n_processes = min(len(chosen), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(n_processes) as processes:
        for name, figures in zip(chosen, processes.map(partial(_run, options, n_users), chosen), strict=True):
            found[name] = figures
            print(f"{name}: {figures['requests']:.0f} requests", file=sys.stderr)
    if options.svg is not None:
        options.svg.write_text(as_svg(f"{n_users} users, {options.models} models, {options.nodes} nodes", found))
    figures = {f"{name}_{key}": value for name, one in found.items() for key, value in one.items()}
    return figures | _against_least_loaded(found, standard=_is_standard(options, n_users))


def _run(options: argparse.Namespace, n_users: int, name: str) -> dict[str, float]:
    """One rule, in a process of its own."""
    maker, models = _makers(options)[name], users.models(options.models)
    minutes = options.minutes or min(MOST_MINUTES, NODE_MINUTES / options.nodes)
    simulation = Simulation(_names(options), models, maker(), _users(options, n_users), options.seed)
    return simulation.run(60 * minutes).figures()


def _makers(options: argparse.Namespace) -> dict[str, Callable[[], Rule]]:
    return rules(_names(options), random.Random(options.seed), Weights())


def _names(options: argparse.Namespace) -> list[str]:
    return [f"node{place}" for place in range(options.nodes)]


def _users(options: argparse.Namespace, count: int) -> list[Iterator[users.Turn]]:
    if options.trace is not None:
        return users.read(options.trace)
    return users.users(count, [model.name for model in users.models(options.models)], options.seed)


def _is_standard(options: argparse.Namespace, n_users: int) -> bool:
    return (options.nodes, n_users, options.models) == STANDARD and options.trace is None


def _against_least_loaded(found: dict[str, dict[str, float]], *, standard: bool) -> dict[str, float]:
    if not {"router", "least_loaded"} <= found.keys():
        return {}
    ours, theirs = found["router"], found["least_loaded"]
    shares: dict[str, float] = {}
    for name, key, limit in (("swaps", "swaps_per_request", SWAPS_LIMIT), ("p99", "wait_p99_s", P99_LIMIT)):
        if theirs[key]:
            shares[f"{name}_of_least_loaded"] = ours[key] / theirs[key]
            if standard:
                shares[f"{name}_of_least_loaded_limit"] = limit
    return shares
