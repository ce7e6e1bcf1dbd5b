"""How much host memory networks take while they are loaded in 4 bits: a child's peak, and what it keeps, as JSON."""

from __future__ import annotations

import json
import sys

from backends.diffusion.kind import DrawPlan
from backends.machine.kernel import forget_peak, peak_bytes, resident_bytes
from backends.messages import LoadModel


def main() -> None:
    """Of the file of the first argument; the toy of the second has everything imported before."""
    from backends.diffusion.loading import load

    marks: list[tuple[int, int]] = []

    def mark(_share: float) -> None:
        marks.append((peak_bytes(), resident_bytes()))

    for path in (sys.argv[2], sys.argv[1]):
        forget_peak()
        before = resident_bytes()
        marks.clear()
        options: dict[str, bool | int | float | str] = {"quantization": "bnb-4bit", "image_size": "64x64"}
        plan = DrawPlan(parallel=1, quantization="bnb-4bit")
        spec = LoadModel(name="a", backend="diffusion", path=path, plan=plan, threads=1, options=options)
        engine = load(spec, mark)
    *networks, _end = marks  # an image is tried behind them
    most, kept = networks[-1]
    print(json.dumps({"most": most - before, "kept": kept - before, "weights": engine.ready().parts["weights"]}))


if __name__ == "__main__":
    main()
