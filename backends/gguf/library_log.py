"""What llama.cpp says about itself: its log, kept to explain failures and to read sizes from; version and devices."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import llama_cpp

from backends.machine.crash_reason import no_memory

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEBUG, _WARNING, _ERROR, _CONTINUE = 1, 3, 4, 5


@dataclass(slots=True)
class LibraryLog:
    """What llama.cpp says while it loads, kept to explain failures and to read buffer sizes from."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _level: int = 0
    _callback: object = None

    def install(self) -> None:
        """Take over llama.cpp's logging for this process."""

        def write(level: int, text: bytes, _: object) -> None:
            self._level = self._level if level == _CONTINUE else level
            if self._level == _DEBUG:  # thousands of lines about graphs
                return
            line = text.decode("utf-8", "replace").rstrip()
            if line:
                (self.problems if self._level in {_WARNING, _ERROR} else self.lines).append(line)
                del self.lines[:-2000], self.problems[:-50]

        callback = llama_cpp.llama_log_callback(write)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))  # llama.cpp calls it as long as the process lives
        llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
        self._callback = callback

    def hear_mtmd(self) -> None:
        """Take over the logging of its part for images and sound, which is loaded only where a model has one."""
        from llama_cpp import mtmd_cpp

        if self._callback is not None:
            mtmd_cpp.mtmd_helper_log_set(self._callback, ctypes.c_void_p(0))

    def buffers(self, kind: str) -> dict[str, int]:
        """Bytes of the `CPU <kind> buffer size = 12.34 MiB` lines, by the device they name."""
        found: dict[str, int] = {}
        for line in self.lines:
            if match := re.search(rf"(\S+)\s+{kind} buffer size\s*=\s*([\d.]+) MiB", line):
                found[match[1]] = found.get(match[1], 0) + _mib(match[2])
        return found

    def repacked_bytes(self) -> int:
        """Bytes of weights that were copied into another order for this processor (`CPU_REPACK`, `AMX`, ...)."""
        as_in_the_file = {"CPU", "CPU_Mapped"}
        return sum(n_bytes for name, n_bytes in self.buffers("model").items() if name not in as_in_the_file)

    def cache_bytes(self) -> int:
        """Bytes of all caches (attention's and recurrent states), from the lines that tell sizes and cells."""
        found = (re.search(r"llama_\w+: size =\s*([\d.]+) MiB", line) for line in self.lines)
        return sum(_mib(match[1]) for match in found if match)

    def offloaded_layers(self) -> int:
        """How many layers llama.cpp says it has put on a GPU."""
        found = (re.search(r"offloaded (\d+)/\d+ layers to GPU", line) for line in self.lines)
        return max((int(match.group(1)) for match in found if match), default=0)


def _mib(text: str) -> int:
    return int(float(text) * (1 << 20))


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU that is there."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def has_all_kv_kernels() -> bool:
    """Whether it was built with flash attention on a card for every pair of types of the KV cache."""
    return b"FA_ALL_QUANTS = 1" in llama_cpp.llama_print_system_info()


def explain(log: LibraryLog) -> str:
    """The sentence of llama.cpp that says why, or a general one; paths are cut off where it is shown."""
    causes: Iterable[str] = (re.sub(r"^([\w:]+: |error loading model: )+", "", line) for line in log.problems)
    told = [line for line in causes if "failed to load model" not in line]
    return f"llama.cpp says: {told[-1]}" if told else "llama.cpp could not load the file and did not say why"


def is_out_of_memory(log: LibraryLog) -> bool:
    """Whether memory was what a load ran out of."""
    return any(no_memory(line) for line in log.problems)


def version() -> str:
    """Name and version of the binding in use."""
    return f"llama-cpp-python {llama_cpp.__version__}"
