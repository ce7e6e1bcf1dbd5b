"""The report of a comparison: figures with their targets, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import llama_cpp

from backends.workload import Workload
from server.bench.figures import median


@dataclass
class Figure:
    """One line of the report; `target` is a bound the value must keep, as text and as a check."""

    name: str
    value: float
    unit: str
    target: str = ""
    kept: bool | None = None
    runs: list[float] = field(default_factory=list)
    """The single values a median was taken of."""


def at_least(name: str, values: list[float], bound: float) -> Figure:
    """A ratio whose median must reach `bound`."""
    value = median(values)
    return Figure(name, value, "", f">= {bound:.2f}", value >= bound, values)


def below(name: str, value: float, unit: str, bound: float) -> Figure:
    """A value that must stay under `bound`."""
    return Figure(name, value, unit, f"< {bound:g}", value < bound)


def machine() -> dict[str, str | int | float]:
    """What the figures were taken on, and how busy it was just before."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "llama_cpp": llama_cpp.__version__,
        "load_average_1min": os.getloadavg()[0],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def markdown(figures: Sequence[Figure], load: Workload, about: dict[str, str | int | float]) -> str:
    """The table a reader looks at."""
    lines = [
        f"{about['processor']}, {about['cores']} cores, Python {about['python']}, "
        f"llama-cpp-python {about['llama_cpp']}; {about['time']}; "
        f"load average at the start {about['load_average_1min']:.2f}. "
        f"Prompts of {load.n_prompt} tokens, {load.n_generate} generated, temperature {load.temperature:g}.",
        "",
        "| figure | value | target | kept | runs |",
        "|---|---|---|---|---|",
    ]
    for figure in figures:
        kept = {None: "", True: "yes", False: "NO"}[figure.kept]
        runs = " ".join(f"{value:.3g}" for value in figure.runs)
        lines.append(f"| {figure.name} | {figure.value:.4g} {figure.unit} | {figure.target} | {kept} | {runs} |")
    return "\n".join(lines) + "\n"


def write(
    folder: Path, figures: Sequence[Figure], load: Workload, about: dict[str, str | int | float]
) -> tuple[Path, Path]:
    """Write `compare.json` and `compare.md` into the folder."""
    folder.mkdir(exist_ok=True)
    table, data = folder / "compare.md", folder / "compare.json"
    table.write_text(markdown(figures, load, about))
    content = {"machine": about, "load": asdict(load), "figures": [asdict(figure) for figure in figures]}
    data.write_text(json.dumps(content, indent=1) + "\n")
    return data, table
