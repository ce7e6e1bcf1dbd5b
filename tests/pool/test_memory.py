"""The device and the budget: what the kernel's files say, and a driver that hangs, lies or is not there."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from backends.machine import card, host
from backends.plan import Amount, Footprint, Parts
from server.memory import gpu
from server.memory.ledger import Measured, Tenant
from server.memory.memory import Memory
from server.memory.opening import LEAST_AUTO_BYTES, DeviceError, open_memory
from server.settings.sections import MemorySection

GIB = 2**30


def machine(root: Path, *, available_kib: int, files: dict[str, str] | None = None) -> Path:
    """A root folder with the kernel's files in it."""
    meminfo = f"MemTotal:       {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {available_kib} kB\n"
    for name, content in {"proc/meminfo": meminfo, **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_machine_without_a_container_has_what_the_kernel_says(tmp_path: Path) -> None:
    root = machine(tmp_path, available_kib=8 * 2**20, files={"sys/fs/cgroup/memory.max": "max\n"})
    assert host.available_bytes(root) == 8 * GIB
    assert host.total_bytes(root) == 16 * GIB


@pytest.mark.parametrize(
    ("limit", "usage", "stat"),
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_container_limit_counts_and_its_page_cache_is_free(tmp_path: Path, limit: str, usage: str, stat: str) -> None:
    files = {
        f"sys/fs/cgroup/{limit}": f"{4 * GIB}\n",
        f"sys/fs/cgroup/{usage}": f"{3 * GIB}\n",
        f"sys/fs/cgroup/{stat}": f"anon 1\ninactive_file {GIB}\ntotal_inactive_file {GIB}\n",
    }
    root = machine(tmp_path, available_kib=8 * 2**20, files=files)
    assert host.available_bytes(root) == 2 * GIB
    assert host.total_bytes(root) == 4 * GIB


SERVICE = "system.slice/onecard.service/"
V2 = ("0::/system.slice/onecard.service\n", "", "memory.max", "memory.current")
V1 = (
    "12:cpu,cpuacct:/else\n5:memory:/system.slice/onecard.service\n0::/other\n",
    "memory/",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
)
MOUNTED = ("0::/docker/abc/not/visible/here\n", "", "memory.max", "memory.current")


@pytest.mark.parametrize(
    ("told", "base", "limit", "usage", "at"),
    [*((*version, at) for version in (V2, V1) for at in (SERVICE, "system.slice/", "")), (*MOUNTED, "")],
)
def test_the_smallest_limit_around_the_service_counts(
    tmp_path: Path, told: str, base: str, limit: str, usage: str, at: str
) -> None:
    files = {
        "proc/self/cgroup": told,
        f"sys/fs/cgroup/{base}{at}{limit}": f"{4 * GIB}\n",
        f"sys/fs/cgroup/{base}{at}{usage}": f"{3 * GIB}\n",
        f"sys/fs/cgroup/{base}system.slice/{'max' if at == 'system.slice/' else limit}": f"{12 * GIB}\n",
        f"sys/fs/cgroup/{base}unrelated/{limit}": "1\n",
        f"sys/fs/cgroup/{base}unrelated/{usage}": "1\n",
    }
    root = machine(tmp_path, available_kib=8 * 2**20, files=files)
    assert (host.available_bytes(root), host.total_bytes(root)) == (GIB, 4 * GIB)


def test_machine_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    assert host.available_bytes(tmp_path) == 0


async def test_budget_on_the_cpu_is_a_share_of_what_is_available_less_the_reserve() -> None:
    memory = await open_memory(MemorySection(device="cpu", reserve=0))
    assert memory.device == "cpu"
    assert 0.5 * host.available_bytes() < memory.account.budget_bytes < host.available_bytes()


async def test_budget_is_never_too_small_for_a_small_model() -> None:
    memory = await open_memory(MemorySection(device="cpu", reserve=2**50))
    assert memory.account.budget_bytes == min(LEAST_AUTO_BYTES, memory.account.budget_bytes)
    assert memory.account.budget_bytes > 64 * 2**20


async def test_budget_the_operator_wrote_is_taken() -> None:
    memory = await open_memory(MemorySection(device="cpu", budget=12345 << 20))
    assert memory.account.budget_bytes == 12345 << 20


async def test_cuda_without_a_card_is_a_sentence_for_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none")
    with pytest.raises(DeviceError, match="hint: device = 'cpu'"):
        await open_memory(MemorySection(device="cuda"))


class Card:
    """A card whose free memory is what the test says; it keeps the rules of the driver: it answers from a thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, total: int = 12 * GIB, free: int = 11 * GIB) -> None:
        self.total, self.free = total, free
        self.asked = threading.Event()
        monkeypatch.setattr(gpu, "_query", self.query)
        monkeypatch.setattr(gpu, "engine_has_cuda", lambda: True)

    def query(self) -> gpu.GpuMemory:
        self.asked.set()
        return gpu.GpuMemory("Fake 4070", self.total, self.free)


async def test_budget_on_a_card_is_what_is_free_less_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    memory = await open_memory(MemorySection(reserve=GIB))
    assert (memory.device, memory.account.budget_bytes, memory.other.device) == ("cuda", 10 * GIB, GIB)


async def test_budget_beyond_the_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    with pytest.raises(DeviceError, match="Fake 4070 has 12 GiB"):
        await open_memory(MemorySection(budget=13 * GIB))


async def test_load_waits_until_the_card_has_given_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, free=GIB)
    memory = Memory("cuda", Amount(10 * GIB, GIB), total=Amount(card.total, 16 * GIB), device_free_bytes=card.free)

    def give_back() -> None:
        card.asked.wait(10)
        card.free = 8 * GIB

    thread = threading.Thread(target=give_back)
    thread.start()
    assert await memory.wait_for_free(Amount(8 * GIB), within_s=10.0)
    thread.join()


async def test_wait_for_a_card_that_others_fill_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, free=GIB)
    memory = Memory("cuda", Amount(10 * GIB, GIB), total=Amount(card.total, 16 * GIB), device_free_bytes=card.free)
    assert not await memory.wait_for_free(Amount(8 * GIB), within_s=0.2)


async def test_what_a_lease_takes_shrinks_no_automatic_budget_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)
    memory = await open_memory(MemorySection(reserve=GIB))
    lease = Tenant("lease_1", "lease")
    memory.ledger.reserve(lease, Footprint(device=Parts(further={"lease": 4 * GIB})))
    memory.lent(4 * GIB)
    budgets = []
    for taken in (0, 3, 4, 6):  # by the lease's holder, and in the end by others too
        card.free = (11 - taken) * GIB
        await memory.look()
        budgets.append(memory.account.budget_bytes // GIB)
    assert budgets == [10, 10, 10, 8]
    memory.ledger.release(lease)
    memory.lent(0)
    await memory.look()
    assert memory.account.budget_bytes == 4 * GIB


async def test_driver_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(gpu.GpuError, match=r"did not answer in 0\.1 s"):
        await gpu.answer(never.wait, within_s=0.1)
    assert time.monotonic() - began < 30
    never.set()


async def test_driver_that_fails_is_a_gpu_error() -> None:
    def fail() -> int:
        raise OSError("/usr/lib/libnvidia-ml.so.1: not found")

    with pytest.raises(gpu.GpuError, match="OSError") as failed:
        await gpu.answer(fail, within_s=5.0)
    assert "/usr/lib" not in str(failed.value)


@pytest.mark.parametrize("visible", ["", "-1", "none,0"])
async def test_a_card_that_is_hidden_is_told_as_that(visible):
    with pytest.raises(gpu.GpuError, match=f"^CUDA_VISIBLE_DEVICES={visible.split(',')[0]} hides every card$"):
        await gpu.answer(lambda: card.first(None, {"CUDA_VISIBLE_DEVICES": visible}), within_s=60)


async def test_automatic_budget_follows_what_the_kernel_says_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = tmp_path / "free"
    free.write_text(str(10 * GIB))
    monkeypatch.setenv(host.TEST_FREE_FILE, str(free))
    memory = await open_memory(MemorySection(device="cpu", reserve=0))
    budgets: list[int] = []
    memory.on_budget_change.append(lambda: budgets.append(memory.account.budget_bytes))

    for free_bytes in (5 * GIB, 5 * GIB - 4096, 10 * GIB):
        free.write_text(str(free_bytes))
        await memory.look()

    assert budgets == [4 * GIB, 8 * GIB]


async def test_budget_the_operator_wrote_does_not_follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.write_text(str(10 * GIB))
    monkeypatch.setenv(host.TEST_FREE_FILE, str(free))
    memory = await open_memory(MemorySection(device="cpu", budget=GIB))
    free.write_text("0")
    await memory.look()
    assert memory.account.budget_bytes == GIB


async def test_memory_that_models_hold_themselves_does_not_shrink_their_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch, free=11 * GIB)
    memory = await open_memory(MemorySection(reserve=GIB))
    memory.ledger.reserve(Tenant("a"), Footprint(Parts(4 * GIB)))
    card.free = 8 * GIB
    await memory.look()
    assert memory.account.budget_bytes == 10 * GIB, "a load in progress tells nothing"

    memory.ledger.settle(Tenant("a"), device=Measured(5 * GIB))
    card.free = 6 * GIB
    await memory.look()
    assert memory.account.budget_bytes == 10 * GIB

    card.free = GIB
    await memory.look()
    assert (memory.account.budget_bytes, memory.account.over_bytes) == (5 * GIB, 0)
    card.free = 0
    await memory.look()
    assert memory.account.over_bytes == GIB


def test_process_that_is_gone_has_no_memory() -> None:
    assert host.anonymous_bytes(2**22 + 1) == 0
    assert host.anonymous_bytes(os.getpid()) > 2**20
