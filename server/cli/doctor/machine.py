"""The machine: its card, how the engines were built, disks and limits. One function per subject; nothing is changed."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.machine import host
from server.cli.doctor.findings import Finding, told
from server.memory import gpu
from server.memory.memory import Memory
from server.memory.opening import DeviceError, open_memory
from server.own_folder import user_folder
from server.settings.references import hub_cache
from server.settings.sizes import format_share, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.settings.sections import MemorySection

_FEW_FILES: Final = 256
_LITTLE_DISK: Final = 5 * 2**30
_LITTLE_SHARED: Final = 256 * 2**20
_ENGINES: Final = {"llama-cpp-python": "GGUF files", "transformers": "model folders"}
_PACKAGES: Final = ("llama-cpp-python", "transformers", "torch", "bitsandbytes")


@dataclass(frozen=True)
class Device:
    """What is known of where models run."""

    probes: gpu.Probes
    budget_bytes: int
    """For models; of the card where there is one."""
    card: gpu.Card | None
    own_pids: frozenset[int] = frozenset()
    """Processes of a server of ours."""
    error: str | None = None
    """Why the configured device cannot be used."""


def look_at_device(section: MemorySection, own_pids: frozenset[int] = frozenset()) -> Device:
    """Ask the driver and the machine."""
    return asyncio.run(_look(section, own_pids))


async def _look(section: MemorySection, own_pids: frozenset[int]) -> Device:
    try:
        memory: Memory | None = await open_memory(section)
        error = None
    except DeviceError as problem:
        memory, error = None, str(problem)
    card, driver_error = None, None
    try:
        card = await gpu.card()
    except gpu.GpuError as problem:
        driver_error = str(problem)
    device = "cpu" if memory is None else memory.device
    wanted = section.device == "cuda" or bool(gpu.engine_has_cuda())
    probes = gpu.probe(section.device, device, driver_error=driver_error if wanted else None)
    return Device(probes, 0 if memory is None else memory.account.budget_bytes, card, own_pids, error)


def device(seen: Device) -> list[Finding]:
    """Where models run, and what they may take."""
    budget = format_size(seen.budget_bytes)
    if seen.error is not None:
        return [told("device", "problem", seen.error)]
    if seen.probes.device == "cuda" and seen.card is not None:
        card = seen.card.memory
        text = f"{card.name}, driver {seen.card.driver}, {format_share(seen.budget_bytes, card.total_bytes)} for models"
        return [Finding("device", "ok", text)]
    found = [Finding("device", "ok", f"cpu, {budget} for models")]
    if seen.card is not None and (seen.probes.asked == "cpu" or seen.probes.hidden):
        why = "device = 'cpu'" if seen.probes.asked == "cpu" else "CUDA_VISIBLE_DEVICES hides it"
        found.append(Finding("device", "note", f"{seen.card.memory.name} is there and not used: {why}"))
    return found


def unused_card(seen: Device) -> list[Finding]:
    """A card that is there and does nothing."""
    return [told("device", "warning", text) for text in gpu.unused_warnings(seen.probes)]


def holders(seen: Device) -> list[Finding]:
    """Who else holds memory of the card."""
    if seen.card is None:
        return []
    if seen.card.holders is None:
        return [Finding("card", "note", "the driver does not tell which programs hold memory of the card")]
    others = [one for one in seen.card.holders if one.pid not in seen.own_pids]
    named = [
        f"{one.name} (pid {one.pid}{'' if one.n_bytes is None else f', {format_size(one.n_bytes)}'})"
        for one in sorted(others, key=lambda one: -(one.n_bytes or 0))
    ]
    if not named:
        return [Finding("card", "ok", "no other program holds memory of the card")]
    held = sum(one.n_bytes or 0 for one in others)
    much = held > seen.card.memory.total_bytes // 8
    text = f"{'; '.join(named[:8])} {'hold' if len(named) > 1 else 'holds'} memory of the card"
    return [Finding("card", "warning" if much else "note", text, "end what you do not need" if much else None)]


def builds(probes: gpu.Probes, versions: Mapping[str, str | None]) -> list[Finding]:
    """Which engines there are, and whether they were built for the card."""
    found = []
    for package, files in _ENGINES.items():
        if versions.get(package) is None:
            hint = "make install, or pip install it into this environment (docs/deployment.md)"
            found.append(Finding("engines", "note", f"{package} is not installed: {files} cannot be served", hint))
    if len(found) == len(_ENGINES):
        return [Finding("engines", "problem", "no engine is installed, so no model can be served", "make install")]
    if (llama := versions.get("llama-cpp-python")) is not None:
        found.append(Finding("engines", "ok", f"llama-cpp-python {llama}, built for {built(probes.llama)}"))
        pinned = pinned_llama()
        if pinned is not None and pinned != llama:
            text = f"llama-cpp-python is {llama}, and this version is tested with {pinned} only"
            found.append(Finding("engines", "warning", text, f"pip install llama-cpp-python=={pinned}"))
    if (torch := versions.get("torch")) is not None:
        found.append(Finding("engines", "ok", f"torch {torch}, built for {built(probes.torch)}"))
    elif versions.get("transformers") is not None:
        text = "transformers is installed without torch: model folders cannot be served"
        found.append(Finding("engines", "warning", text, "pip install torch"))
    return found


def built(for_cuda: bool | None) -> str:
    """In words."""
    return "CUDA" if for_cuda else "the CPU"


def installed() -> dict[str, str | None]:
    """The versions of what engines are made of. Imports nothing."""
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def pinned_llama() -> str | None:
    """The version that this package asks for."""
    try:
        asked = requires("onecard") or []
    except PackageNotFoundError:
        return None
    match = re.search(r"llama-cpp-python==([\w.]+)", "\n".join(asked))
    return match[1] if match is not None else None


@dataclass(frozen=True)
class Place:
    """A folder, and what can be said of its disk."""

    what: str
    path: Path
    free_bytes: int | None
    """None where it cannot be told."""
    writable: bool
    least_bytes: int = _LITTLE_DISK
    half_bytes: int = 0
    """Of downloads that broke off."""


def look_at_places() -> list[Place]:
    """The Hugging Face cache, our own cache, and shared memory."""
    return [
        _place("models from the hub", hub_cache(), half=_half(hub_cache())),
        _place("onecard's cache", user_folder("XDG_CACHE_HOME", "~/.cache")),
        _place("what was learned", user_folder("XDG_DATA_HOME", "~/.local/share"), least=64 * 2**20),
        _place("the prefix cache", Path("/dev/shm"), least=_LITTLE_SHARED),  # noqa: S108 - looked at only
    ]


def _half(cache: Path) -> int:
    total = 0
    for file in cache.glob("models--*/blobs/*.incomplete"):
        try:
            total += file.stat().st_blocks * 512
        except OSError:
            continue
    return total


def _place(what: str, path: Path, *, least: int = _LITTLE_DISK, half: int = 0) -> Place:
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return Place(what, path, free, os.access(there, os.W_OK | os.X_OK), least, half)


def places(seen: list[Place]) -> list[Finding]:
    """Room and rights where files go."""
    found = []
    for place in seen:
        where = f"{place.path} ({place.what})"
        if not place.writable:
            found.append(Finding("disk", "problem", f"{where} cannot be written by this user", f"ls -ld {place.path}"))
            continue
        free = "an unknown size is" if place.free_bytes is None else f"{format_size(place.free_bytes)} are"
        little = place.free_bytes is not None and place.free_bytes < place.least_bytes
        remedy = "make room there" if little else None
        found.append(Finding("disk", "warning" if little else "ok", f"{where}: {free} free", remedy))
        if place.half_bytes:
            half = format_size(place.half_bytes)
            remedy = "`onecard pull` goes on with them, `onecard rm` removes them"
            found.append(Finding("disk", "note", f"{where} holds {half} of downloads that broke off", remedy))
    return found


def limits(soft: int, hard: int) -> list[Finding]:
    """How many files a process may open; the server raises it to the hard limit itself."""
    if hard == resource.RLIM_INFINITY or hard >= _FEW_FILES:
        return []
    text = f"a process may open {hard} files, and each connection and each model takes some"
    return [Finding("limits", "warning", text, "raise `ulimit -Hn`, or LimitNOFILE in the unit")]


def memory(total_bytes: int, available_bytes: int) -> list[Finding]:
    """Host memory."""
    text = f"{format_share(available_bytes, total_bytes)} of host memory are free"
    if available_bytes < 2**30:
        return [Finding("memory", "warning", text, "end what you do not need: models need some beside the card too")]
    return [Finding("memory", "ok", text)]


def machine(section: MemorySection, own_pids: frozenset[int]) -> list[Finding]:
    """All of it."""
    seen = look_at_device(section, own_pids)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        *device(seen),
        *unused_card(seen),
        *holders(seen),
        *builds(seen.probes, installed()),
        *memory(host.total_bytes(), host.available_bytes()),
        *places(look_at_places()),
        *limits(soft, hard),
    ]
