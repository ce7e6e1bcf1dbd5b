"""What is kept of cached prefixes, in memory and on a disk: caps, worth, and files that are not what they were."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.prefix.entry_files import EntryFile, EntryFolder, Label, size_of
from backends.prefix.eviction_score import HALF_LIFE_S, cost_of, file_name
from backends.prefix.store import PrefixStore
from tests.small_disk import run_in_name_space

N_STATE = 30_000
ONE = size_of(64, N_STATE)
"""What a file of `tokens(...)` takes."""


def tokens(seed: int, n: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, n).astype(np.int64)


def state(seed: int, n: int = N_STATE) -> np.ndarray:
    return np.random.default_rng(1000 + seed).integers(0, 256, n).astype(np.uint8)


class Kept:
    """A store with both tiers in a folder."""

    def __init__(self, folder: Path, *, host: int, disk: int = 0, identity: str = "model") -> None:
        self.host_folder, self.disk_folder = folder / "host", folder / "disk"
        on_disk = EntryFolder(self.disk_folder, checked=True) if disk else None
        self.store = PrefixStore(
            EntryFolder(self.host_folder, checked=False), host, identity=identity, disk=on_disk, disk_bytes=disk
        )

    def put(
        self, seed: int, *, cost_us: float = 100.0, now_s: float = 0.0, domain: str = "", **more: Any
    ) -> EntryFile | None:
        def fill(target: np.ndarray) -> bool:
            target[:] = state(seed)
            return True

        return self.store.put(
            tokens(seed), N_STATE, fill, cost_us=lambda _: cost_us, now_s=now_s, domain=domain, **more
        )

    def has(self, seed: int, *, domain: str = "", now_s: float = 0.0) -> str:
        """In which tier it is found, with the right bytes in it; empty for nowhere."""
        for entry, n_tokens in self.store.find(tokens(seed), domain=domain, most=64):
            there = self.store.open(entry, now_s=now_s)
            if there is not None:
                assert n_tokens == 64
                assert np.array_equal(there, state(seed))
                return entry.path.parent.name
        return ""

    def check(self, *, host: int, disk: int) -> None:
        for folder, cap in ((self.host_folder, host), (self.disk_folder, disk)):
            files = list(folder.iterdir()) if folder.exists() else []
            assert sum(file.stat().st_blocks * 512 for file in files) <= cap
            assert all(file.suffix == ".kv" for file in files)


def test_what_leaves_memory_is_found_on_the_disk(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=2 * ONE, disk=10 * ONE)
    for seed in range(5):
        assert kept.put(seed, now_s=seed)

    assert [kept.has(seed) for seed in range(5)] == ["disk", "disk", "disk", "host", "host"]
    kept.check(host=2 * ONE, disk=10 * ONE)


def test_a_full_disk_tier_lets_go_what_is_worth_least(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=ONE, disk=2 * ONE)
    for seed, cost_us in enumerate((500.0, 100.0, 900.0, 700.0, 950.0)):
        kept.put(seed, cost_us=cost_us)

    assert [kept.has(seed) for seed in range(5)] == ["", "", "disk", "disk", "host"]
    kept.check(host=ONE, disk=2 * ONE)


def test_what_was_not_used_for_long_is_worth_less_than_what_was(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=2 * ONE)
    kept.put(0, cost_us=150.0, now_s=0.0)
    kept.put(1, cost_us=100.0, now_s=0.9 * HALF_LIFE_S)
    kept.put(2, now_s=HALF_LIFE_S)
    assert [kept.has(seed, now_s=HALF_LIFE_S) for seed in range(3)] == ["", "host", "host"]


def test_who_has_just_spoken_is_kept_unless_the_others_are_worth_much_more(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=ONE)
    assert kept.put(0, cost_us=101.0)
    assert kept.put(1, cost_us=100.0)
    assert kept.put(2, cost_us=49.0) is None
    assert [kept.has(seed) for seed in range(3)] == ["", "host", ""]


def test_the_next_worker_finds_both_tiers_and_another_model_none(tmp_path: Path) -> None:
    first = Kept(tmp_path, host=2 * ONE, disk=4 * ONE)
    for seed in range(4):
        first.put(seed, now_s=seed)

    second = Kept(tmp_path, host=2 * ONE, disk=4 * ONE)
    assert [second.has(seed) for seed in range(4)] == ["disk", "disk", "host", "host"]

    stranger = Kept(tmp_path, host=2 * ONE, disk=4 * ONE, identity="another")
    assert [stranger.has(seed) for seed in range(4)] == [""] * 4
    assert not list(tmp_path.rglob("*.kv")), "what cannot be used takes no room"


def test_a_lower_limit_sends_the_least_worth_to_the_disk_and_the_pinned_last(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=3 * ONE, disk=ONE)
    pinned = kept.put(0, cost_us=1.0, pinned=True)
    kept.put(1, cost_us=500.0)
    kept.put(2, cost_us=100.0)
    assert pinned is not None

    kept.store.limit(ONE, now_s=0)

    assert kept.store.n_bytes == ONE
    assert kept.has(0) == "host"
    assert [kept.has(seed) for seed in (1, 2)] == ["disk", ""]
    kept.store.limit(0, now_s=0)
    assert kept.store.n_bytes == 0
    assert kept.store.open(pinned, now_s=0) is None
    kept.check(host=0, disk=ONE)
    assert kept.put(3) is None
    kept.store.limit(ONE, now_s=0)
    assert kept.put(3)


def test_domains_stay_apart_on_the_disk_too(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=ONE, disk=4 * ONE)
    kept.put(0, domain="first key")
    kept.put(1, domain="first key", now_s=1)

    for store in (kept, Kept(tmp_path, host=ONE, disk=4 * ONE)):
        assert store.has(0, domain="second key") == store.has(0) == ""
        assert store.has(0, domain="first key") == "disk"


# Files that are not what they were

DAMAGE: dict[str, Callable[[bytearray], bytes]] = {
    "empty": lambda _: b"",
    "cut in the label": lambda raw: bytes(raw[:40]),
    "cut in the tokens": lambda raw: bytes(raw[:4200]),
    "cut in the state": lambda raw: bytes(raw[:-1]),
    "longer": lambda raw: bytes(raw) + b"x",
    "no magic": lambda raw: b"another program" + bytes(raw[15:]),
    "an older version": lambda raw: bytes(raw).replace(b"onecard-prefix-2", b"onecard-prefix-1", 1),
    "label of rubbish": lambda raw: bytes(raw[:16]) + b"{" * 100 + bytes(raw[116:]),
    "label with negative sizes": lambda raw: _relabel(raw, n_tokens=-4),
    "a bit of a token": lambda raw: _flip(raw, 4096 + 161),
    "a bit of the state": lambda raw: _flip(raw, 8192 + N_STATE // 2),
    "the last bit": lambda raw: _flip(raw, len(raw) - 1),
    "another's domain": lambda raw: _relabel(raw, domain="another"),
    "cheaper to cut": lambda raw: _relabel(raw, least=-1),
    "no checksum": lambda raw: _relabel(raw, checksum=None),
}
ONLY_ON_THE_DISK = {"no magic", "an older version", "label of rubbish", "label with negative sizes", "a bit of a token",
                    "another's domain", "cheaper to cut", "no checksum"}  # fmt: skip
"""What a worker that has read the file's beginning before knows better."""


def _flip(raw: bytearray, at: int) -> bytes:
    raw[at] ^= 1
    return bytes(raw)


def _relabel(raw: bytearray, **changes: object) -> bytes:
    head = bytes(raw[16:4096]).rstrip(b"\0")
    label = msgspec.structs.replace(msgspec.json.decode(head, type=Label), **changes)
    return bytes(raw[:16]) + msgspec.json.encode(label).ljust(4080, b"\0") + bytes(raw[4096:])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("when", ["before the next worker", "under the worker's hands"])
def test_a_damaged_file_on_the_disk_is_dropped_and_never_given_out(tmp_path: Path, damage: str, when: str) -> None:
    kept = Kept(tmp_path, host=ONE, disk=4 * ONE)
    for seed in range(3):
        kept.put(seed, now_s=seed)
    hurt = next(entry.path for entry, _ in kept.store.find(tokens(1), domain="", most=64))
    hurt.write_bytes(DAMAGE[damage](bytearray(hurt.read_bytes())))
    if when == "before the next worker":
        kept = Kept(tmp_path, host=ONE, disk=4 * ONE)
    elif damage in ONLY_ON_THE_DISK:
        assert kept.has(1) == "disk"
        return

    assert kept.has(1) == kept.has(1, domain="another") == ""
    assert not hurt.exists()
    assert [kept.has(seed) for seed in (0, 2)] == ["disk", "host"]
    assert kept.put(3, now_s=3)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, ONE - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_makes_another_state(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    tmp_path = tmp_path_factory.mktemp("flip")
    kept = Kept(tmp_path, host=ONE, disk=4 * ONE)
    for seed in range(2):
        kept.put(seed, now_s=seed)
    (file,) = kept.disk_folder.iterdir()
    raw = bytearray(file.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    file.write_bytes(raw)

    assert Kept(tmp_path, host=ONE, disk=4 * ONE).has(0) in ("", "disk")


def test_a_file_that_the_server_has_removed_is_forgotten(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=4 * ONE)
    for seed in range(2):
        kept.put(seed)
    for file in kept.host_folder.iterdir():
        file.unlink()

    assert [kept.has(seed) for seed in range(2)] == ["", ""]
    assert kept.store.n_bytes == 0


# Room that runs out


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """The kernel refuses larger ones, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_takes_nothing_costs_the_state_and_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=4 * ONE, disk=4 * ONE)
    kept.put(0)
    with files_of_at_most(ONE // 2):
        assert kept.put(1) is None
        kept.store.limit(0, now_s=0)

    assert [kept.has(seed) for seed in range(2)] == ["", ""]
    kept.check(host=0, disk=0)
    kept.store.limit(4 * ONE, now_s=0)
    assert kept.put(2)
    assert kept.has(2) == "host"


@pytest.mark.parametrize("fits", [True, False])
def test_a_shorter_state_leaves_only_when_the_longer_one_is_written(tmp_path: Path, *, fits: bool) -> None:
    kept = Kept(tmp_path, host=4 * ONE)
    kept.put(0)
    longer = np.concatenate([tokens(0), tokens(1)])

    def fill(target: np.ndarray) -> bool:
        target[:] = state(0)
        return True

    with files_of_at_most(4 * ONE if fits else ONE // 2):
        made = kept.store.put(longer, N_STATE, fill, cost_us=lambda _: 100.0, now_s=1)

    assert (made is not None) is fits
    assert len(kept.store) == len(list(kept.host_folder.iterdir())) == 1
    assert kept.has(0) == "host"


def test_a_folder_that_is_gone_costs_the_state_and_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path, host=ONE, disk=4 * ONE)
    kept.put(0)
    kept.disk_folder.rmdir()

    assert kept.put(1, now_s=1)

    assert [kept.has(seed) for seed in range(2)] == ["", "host"]


IN_A_SMALL_FOLDER = """
import os, subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", sys.argv[1]], check=True)
from tests.backends.test_prefix_store import ONE, Kept
kept = Kept(Path(sys.argv[1]), host=2 * ONE, disk=1 << 30)
for seed in range(12):
    assert kept.put(seed, now_s=seed), seed
found = [kept.has(seed) for seed in range(12)]
assert found[-2:] == ["host", "host"], found
assert 2 <= found.count("disk") <= 6, found
assert not [path for path in Path(sys.argv[1]).rglob("*") if path.suffix == ".part"]
print("ok")
"""


def test_a_file_system_without_room_ends_nothing(tmp_path: Path) -> None:
    """On a file system of 256 KiB."""
    done = run_in_name_space(IN_A_SMALL_FOLDER, tmp_path)

    assert done.stdout == "ok\n", done.stderr


# Who is killed while it writes

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.backends.test_prefix_store import N_STATE, ONE, Kept, state, tokens
kept = Kept(Path(sys.argv[1]), host=ONE, disk=4 * ONE)
kept.put(0)
def fill(target):
    target[: N_STATE // 2] = state(1)[: N_STATE // 2]
    if sys.argv[2] == "host":
        os.kill(os.getpid(), signal.SIGKILL)
    return True
if sys.argv[2] == "disk":
    class Dying:
        def __setitem__(self, at, what): os.kill(os.getpid(), signal.SIGKILL)
    put = kept.store._disk.put
    kept.store._disk.put = lambda label, tokens, copy, now_s: put(label, tokens, lambda _: copy(Dying()), now_s=now_s)
kept.store.put(tokens(1), N_STATE, fill, cost_us=lambda _: 1e3, now_s=1)
"""


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_what_a_killed_worker_was_writing_is_never_found(tmp_path: Path, tier: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), tier], timeout=60, check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / tier).glob("*.part"))

    kept = Kept(tmp_path, host=ONE, disk=4 * ONE)

    assert kept.has(1) == ""
    assert kept.has(0) == ("disk" if tier == "host" else "host")
    kept.check(host=ONE, disk=4 * ONE)


def test_a_name_tells_what_a_file_saves() -> None:
    assert cost_of(file_name(3, 1234.9)) == 1234
    assert cost_of(file_name(3, -1)) == 0
    assert cost_of(file_name(3, 1e30)) == float(10**18 - 1)
    assert [cost_of(name) for name in ("1.part", "lock", "00000001.kv", "1-x.kv", "1-2.kv.part")] == [0] * 5


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept = Kept(tmp_path, host=ONE, disk=ONE)
        kept.put(0)
        kept.put(1, now_s=1)
    finally:
        os.umask(before)
    modes = {path.name if path.is_dir() else "file": path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"host": 0o700, "disk": 0o700, "file": 0o600}
