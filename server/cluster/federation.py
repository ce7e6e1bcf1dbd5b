"""The metrics of all nodes on one page: every sample with its node's name, every family described once. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SAMPLE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (.+)$")


def federated(pages: Mapping[str, str]) -> str:
    """One page of Prometheus' text format from those of nodes, by their names."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for node, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if not any(one.split(" ", 2)[1] == line.split(" ", 2)[1] for one in known):
                    known.append(line)
            elif (found := _SAMPLE.match(line)) is not None:
                samples.setdefault(family or found[1], []).append(_labelled(found, node))
    return "".join("\n".join([*heads.get(name, ()), *lines]) + "\n" for name, lines in samples.items())


def _labelled(sample: re.Match[str], node: str) -> str:
    name, labels, value = sample.groups()
    escaped = node.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    own = f'node="{escaped}"'
    return f"{name}{{{own}{',' + labels if labels else ''}}} {value}"
