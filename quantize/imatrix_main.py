"""Child process: runs a text through a model and sums the squares of what every weight matrix is fed.

It watches the graph through llama.cpp's eval callback: for each product with a named weight the inputs are read after
they were computed. Request on stdin: JSON; progress on stdout: JSON lines; the result is the file it is told to write.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.files import model_files
from quantize import imatrix
from quantize.calibrate import MAX_TEXT_BYTES
from quantize.llama import Ggml, GgmlTensor, Model
from quantize.orphan import die_with_parent

_F32 = 0


class Collector:
    """Sums per weight matrix."""

    def __init__(self) -> None:
        self._ggml = Ggml()
        self.squares: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.float64]] = {}
        self.problem: str | None = None

    def watch(self, pointer: Any, ask: bool, data: Any) -> bool:
        """Asked before a node is computed whether it is wanted, told after it was."""
        del data
        try:
            node = GgmlTensor.from_address(pointer)
            op = self._ggml.op_name(pointer)
            if op not in (b"MUL_MAT", b"MUL_MAT_ID"):
                return not ask
            weight = GgmlTensor.from_address(node.src[0])
            name = weight.name.decode("utf-8", "replace")
            if not (name.startswith(("blk.", "output")) and name.endswith(".weight")):
                return not ask
            if not ask:
                self._add(name, op, node, weight)
        except Exception:
            self.problem = traceback.format_exc()
            return False
        return True

    def _add(self, name: str, op: bytes, node: GgmlTensor, weight: GgmlTensor) -> None:
        fed = GgmlTensor.from_address(node.src[1])
        if fed.type != _F32 or fed.ne[0] != weight.ne[0]:
            raise TypeError(f"{name} is fed with type {fed.type} of {fed.ne[0]} columns")
        rows = self._ggml.read(node.src[1], np.float32).reshape(-1, fed.ne[0])
        if name not in self.squares:
            self.squares[name] = np.zeros((weight.ne[2], weight.ne[0]))
            self.counts[name] = np.zeros(weight.ne[2])
        if op == b"MUL_MAT":
            self.squares[name][0] += np.square(rows).sum(axis=0, dtype=np.float64)
            self.counts[name][0] += len(rows)
            return
        chosen = GgmlTensor.from_address(node.src[2])
        experts = self._ggml.read(node.src[2], np.int32).reshape(chosen.ne[1], -1)[:, : chosen.ne[0]]
        spread = rows.reshape(fed.ne[2], fed.ne[1], fed.ne[0])
        for slot in range(experts.shape[1]):
            inputs = spread[:, slot % fed.ne[1]]
            np.add.at(self.squares[name], experts[:, slot], inputs.astype(np.float64) ** 2)
            np.add.at(self.counts[name], experts[:, slot], 1)


def main() -> None:
    """One request."""
    die_with_parent()
    request = json.load(sys.stdin)
    collector = Collector()
    n_ctx = request["window"]
    model = Model(Path(request["model"]), n_ctx=n_ctx, threads=request["threads"], watch=collector.watch)
    tokens = model.tokenize(model_files.read_text(Path(request["text"]), MAX_TEXT_BYTES))
    starts = range(0, len(tokens) - n_ctx + 1, n_ctx) or range(1)
    starts = starts[: request["max_windows"]]
    for done, start in enumerate(starts, 1):
        window = tokens[start : start + n_ctx]
        if model.first_token is not None:
            window[0] = model.first_token
        model.forget()
        model.decode(window, first_output=0)
        if collector.problem:
            sys.exit(collector.problem)
        sys.stdout.write(json.dumps({"done": done, "total": len(starts)}) + "\n")
        sys.stdout.flush()
    entries = {
        name: imatrix.Sums(squares.astype(np.float32), collector.counts[name].astype(np.float32))
        for name, squares in collector.squares.items()
    }
    imatrix.write(imatrix.Imatrix(entries, (request["dataset"],), len(starts), n_ctx), Path(request["target"]))


if __name__ == "__main__":
    main()
