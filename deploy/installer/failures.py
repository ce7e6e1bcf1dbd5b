"""From the output of a step that failed to one sentence with one hint. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from installer.machine import Machine
from installer.words import system_install

CPU = "`make serve BUILD=cpu` goes on without the card"
ONE_AT_A_TIME = "CMAKE_BUILD_PARALLEL_LEVEL=1 before the command compiles one file at a time"
_INDEX = "look at the network, or name a mirror with PIP_INDEX_URL; then the same again"

Hint = Callable[[Machine, "re.Match[str]"], str]

_KNOWN: tuple[tuple[str, str, Hint], ...] = (
    (
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|\[Errno 122\]",
        "the disk is full",
        lambda _, __: "free some, or name a folder with room: TMPDIR=/path before the command",
    ),
    (
        r"Killed signal terminated program|\bKilled\b|signal 9|out of memory|virtual memory exhausted"
        r"|[Cc]annot allocate memory",
        "there was not enough memory",
        lambda _, __: ONE_AT_A_TIME,
    ),
    (
        r"unsupported GNU version! gcc versions later than (\d+)",
        "nvcc does not take this g++",
        lambda machine, found: f"`{system_install(machine, 'g++', version=int(found[1]))}`, then the same again",
    ),
    (
        r"(?i)unsupported gpu architecture '?(\w+)",
        "this CUDA toolkit does not know the card",
        lambda _, __: f"install a toolkit that does; {CPU}",
    ),
    (
        r"(?i)could not find CUDAToolkit|CUDA_cublas_LIBRARY|CUDA::cublas\w* but|cublas_v2\.h: No such"
        r"|cannot find -lcublas|CUDA Toolkit not found|cannot find -lcuda\b|CMAKE_CUDA_COMPILER could be found"
        r"|No CMAKE_CUDA_COMPILER",
        "the CUDA toolkit is not whole",
        lambda machine, _: f"`{system_install(machine, 'toolkit')}`, then the same again; {CPU}",
    ),
    (
        r"CMAKE_C(?:XX)?_COMPILER.* (?:is not able to compile|not set|could be found)|No CMAKE_C(?:XX)?_COMPILER"
        r"|cannot execute .?cc1plus|(?:stdio|stdlib|string|cstdlib|features)\.?h?: No such file",
        "the C++ compiler does not work",
        lambda machine, _: f"`{system_install(machine, 'g++')}`, then the same again",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a package is not the one that was pinned",
        lambda _, __: "the index or a proxy on the way changed it: name another with PIP_INDEX_URL",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "the package index's certificate cannot be checked",
        lambda _, __: "PIP_CERT=/path/to/ca.pem before the command names your proxy's",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|NameResolutionError|Network is unreachable"
        r"|NewConnectionError|ConnectTimeoutError|Connection refused|Read timed out|Max retries exceeded|ProxyError"
        r"|RemoteDisconnected|Connection reset",
        "the package index cannot be reached",
        lambda _, __: _INDEX,
    ),
    (
        r"(?:Could not find a version that satisfies the requirement|No matching distribution found for) (\S+)",
        "the package index has not what is needed",
        lambda _, found: f"it has no {found[1]}: {_INDEX}",
    ),
    (
        r"\[Errno 13\] Permission denied: '?([^'\n]+)|\[Errno 30\] Read-only file system: '?([^'\n]+)",
        "a file may not be written",
        lambda _, found: f"make {found[1] or found[2]} yours (chown), then the same again",
    ),
)
_CAUSES = (r"(?im)^.*\b(?:fatal )?error: .+$", r"(?m)^CMake Error.*\n\s*.*$", r"(?im)^.*\berror\b.*$")


def explained(log: str, machine: Machine, *, step: str, log_name: str, cuda: bool = False) -> str:
    """`llama.cpp could not be compiled: the disk is full (log: ...). hint: ...`."""
    for pattern, told, hint in _KNOWN:
        if (found := re.search(pattern, log)) is not None:
            return f"{step}: {told} (log: {log_name}). hint: {hint(machine, found)}"
    general = CPU if cuda else "the log tells more"
    return f"{step}: {cause(log) or 'it does not say why'} (log: {log_name}). hint: {general}"


def cause(log: str) -> str:
    """The first line that tells an error, short; empty where none does."""
    for pattern in _CAUSES:
        if (found := re.search(pattern, log)) is not None:
            return " ".join(found[0].split())[:200].rstrip(". ")
    return ""
