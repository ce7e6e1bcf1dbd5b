"""deploy/installer/machine.py: what is found on a machine of small executables and files."""

from __future__ import annotations

import pytest
from installer.machine import Card, Compiler, memory_bytes

SMI = "echo '8.9, 580.65.06, NVIDIA GeForce RTX 4070 Ti'; echo '12.0, 580.65.06, NVIDIA GeForce RTX 5090'"
BUS = "sys/bus/pci/devices/0000:01:00.0"


def test_a_bare_machine_has_nothing(made):
    found = made.look()
    assert (found.compiler, found.compilers, found.card, found.toolkits) == (None, (), None, ())
    assert (found.c_compiler, found.manager, found.amx) == (False, None, False)


@pytest.mark.parametrize(
    ("smi", "card"),
    [
        (SMI, Card("NVIDIA GeForce RTX 4070 Ti", (8, 9), "580.65.06")),
        ("echo 'No devices were found'", None),
        ("echo 'No devices were found'; exit 6", None),
        ('echo "couldn\'t communicate with the NVIDIA driver"; exit 9', None),
        ("echo '[N/A], [N/A], [N/A]'", None),
        ("kill -9 $$", None),
    ],
)
def test_the_driver_tells_of_the_first_card(made, smi, card):
    made.program("nvidia-smi", smi)
    assert made.look().card == card


@pytest.mark.parametrize(
    "files",
    [
        {f"{BUS}/vendor": "0x10de\n", f"{BUS}/class": "0x030000\n"},
        {f"{BUS}/vendor": "0x10de\n", f"{BUS}/class": "0x030200\n"},
        {"dev/nvidia0": ""},
        {"proc/driver/nvidia/gpus/0000:01:00.0/information": ""},
    ],
)
def test_a_card_without_a_driver_is_one(made, files):
    for name, text in files.items():
        made.file(name, text)
    assert made.look().card == Card("an NVIDIA card", None, None)


@pytest.mark.parametrize(("vendor", "kind"), [("0x8086", "0x030000"), ("0x10de", "0x020000"), ("0x10de", "0x040300")])
def test_other_devices_are_none(made, vendor, kind):
    made.file(f"{BUS}/vendor", vendor)
    made.file(f"{BUS}/class", kind)
    assert made.look().card is None


def toolkits(found):
    return [(toolkit.version, toolkit.root.name, toolkit.cublas) for toolkit in found.toolkits]


def test_toolkits_are_found_on_path_and_in_their_folders_each_once(made):
    made.program("nvidia-smi", SMI)
    top = made.root / "usr/local/cuda-13.0"
    made.nvcc("usr/local/cuda-13.0", "13.0", cublas=False, top=f"{top}/bin/..")
    made.nvcc("usr/local/cuda-12.4", "12.4")
    made.nvcc("opt/cuda", "12.8")
    made.program("nvcc", f'exec {top}/bin/nvcc "$@"')
    assert toolkits(made.look()) == [
        ((13, 0), "cuda-13.0", False),
        ((12, 8), "cuda", True),
        ((12, 4), "cuda-12.4", True),
    ]
    other = {"CUDACXX": str(made.root / "opt/cuda/bin/nvcc")}
    assert toolkits(made.look(**other))[0] == ((12, 8), "cuda", True)
    assert toolkits(made.look(PATH="/nowhere")) == []  # no nvidia-smi, no card, no question


@pytest.mark.parametrize("files", [["include/cublas_v2.h"], ["lib64/libcublas.so"], []])
def test_half_a_cublas_is_none(made, files):
    made.program("nvidia-smi", SMI)
    made.nvcc("opt/cuda", "12.8", cublas=False)
    for name in files:
        made.file(f"opt/cuda/{name}")
    assert toolkits(made.look()) == [((12, 8), "cuda", False)]


def test_cublas_of_a_distribution_lies_elsewhere(made):
    made.program("nvidia-smi", SMI)
    made.nvcc("usr/lib/cuda", "12.0", cublas=False)
    made.file("usr/include/cublas_v2.h")
    made.file("usr/lib/x86_64-linux-gnu/libcublas.so")
    assert toolkits(made.look()) == [((12, 0), "cuda", True)]


def test_compilers_are_those_of_cmake_and_all_on_path(made):
    made.program("c++", "echo 16.1")
    made.program("g++", "echo 16.1")
    made.program("g++-14", "echo 14")
    made.program("g++-13", "exit 1")
    made.program("cc", "exit 0")
    made.program("apt", "exit 0")
    found = made.look()
    path = made.root / "bin"
    assert found.compiler == Compiler(f"{path}/c++", 16)
    assert found.compilers == (Compiler(f"{path}/g++", 16), Compiler(f"{path}/g++-14", 14))
    assert (found.c_compiler, found.manager) == (True, "apt")
    assert made.look(CXX="g++-14 -g").compiler == Compiler(f"{path}/g++-14", 14)
    assert made.look(CXX="nothing").compiler is None
    assert made.look(CC="nothing").c_compiler is False


def test_amx_is_told_by_the_kernel(made):
    made.file("proc/cpuinfo", "flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    assert made.look().amx


MEMINFO = "MemTotal:  8000000 kB\nMemAvailable:    4000000 kB\nSwapFree:   1000000 kB\n"
GROUP = {
    "memory.max": "2000000000\n",
    "memory.current": "1500000000\n",
    "memory.stat": "anon 1\ninactive_file 300000000\n",
}


@pytest.mark.parametrize(
    ("meminfo", "group", "n_bytes"),
    [
        (MEMINFO, {}, 5_000_000 * 1024),
        (MEMINFO, GROUP, 800_000_000),
        (MEMINFO, {**GROUP, "memory.max": "max\n"}, 5_000_000 * 1024),
        (MEMINFO, {**GROUP, "memory.current": "2100000000\n", "memory.stat": ""}, 0),
        ("", {}, 0),
    ],
)
def test_memory_is_what_a_container_leaves_of_it(made, meminfo, group, n_bytes):
    made.file("proc/meminfo", meminfo)
    for name, text in group.items():
        made.file(f"sys/fs/cgroup/{name}", text)
    assert memory_bytes(made.root) == n_bytes
