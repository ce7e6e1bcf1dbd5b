"""Child process: one call of llama_model_quantize; its log becomes progress lines on stdout.

The request on stdin and the lines on stdout are JSON; see `quantizer`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from quantize import imatrix
from quantize.orphan import die_with_parent

_LINE = re.compile(
    r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+-\s+\[[^\]]*\],\s*type =\s*(\w+)(?:.*?(?:converting to (\w+)|\((\w+)\)\s*$))?"
)

_REPLACED = re.compile(r"warning: (\S+)\s+- ncols .*required for type\s+(\w+)\).*falling back to\s+(\w+)")


class _Log:
    """llama.cpp's log: progress lines go to stdout, the rest to stderr."""

    def __init__(self) -> None:
        self._line = ""

    def take(self, level: int, text: bytes, user_data: Any) -> None:
        """Pieces of lines, as llama.cpp hands them out."""
        del level, user_data
        self._line += text.decode("utf-8", "replace")
        if "\n" in self._line or "size =" in self._line:
            self._report(self._line)
        if self._line.endswith("\n"):
            self._line = ""

    def _report(self, line: str) -> None:
        if not line.endswith("\n"):
            return
        match = _LINE.search(line)
        if match is None and (other := _REPLACED.search(line)) is not None:
            _send({"replaced": other[1], "wanted": other[2].upper(), "made": other[3].upper()})
        elif match is None:
            sys.stderr.write(line)
        if match is None:
            return
        made = match[5] or match[6] or match[4]
        _send({"done": int(match[1]), "total": int(match[2]), "tensor": match[3], "type": made.upper()})


def main() -> None:
    """One request."""
    die_with_parent()
    request = json.load(sys.stdin)
    log = _Log()
    callback = llama_cpp.llama_log_callback(log.take)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params, kept = _params(request)
    code = llama_cpp.llama_model_quantize(request["source"].encode(), request["target"].encode(), params)
    del kept
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code == 0 else 1)


def _params(request: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The C structure, and what it points to."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request["file_type"]
    params.nthread = request["threads"] or os.cpu_count() or 1
    params.allow_requantize = request["requantize"]
    params.pure = request["pure"]
    params.dry_run = request["dry_run"]
    params.max_buf_size = request["buffer_bytes"]
    if request["output_type"] is not None:
        params.output_tensor_type = request["output_type"]
    if request["embedding_type"] is not None:
        params.token_embedding_type = request["embedding_type"]
    kept: list[Any] = []
    if request["overrides"]:
        overrides = (llama_cpp.llama_model_tensor_override * (len(request["overrides"]) + 1))()
        for slot, (pattern, number) in zip(overrides, request["overrides"], strict=False):
            slot.pattern, slot.type = pattern.encode(), number
        params.tt_overrides = overrides
        kept.append(overrides)
    if request["imatrix"] is not None:
        kept.append(_point_to_imatrix(params, Path(request["imatrix"])))
    return params, kept


def _point_to_imatrix(params: Any, path: Path) -> list[Any]:
    entries = imatrix.read(path).entries
    data = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    arrays = []
    for slot, (name, sums) in zip(data, entries.items(), strict=False):
        means = sums.means()
        arrays.append(means)
        slot.name = name.encode()
        slot.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        slot.size = np.size(means)
    params.imatrix = data
    return [data, arrays]


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
