"""deploy/installer/failures.py: whatever a step printed, one sentence and one hint come of it."""

from __future__ import annotations

import pytest
from installer.failures import cause, explained

from tests.deploy.conftest import machine

NOISE = "".join(f"  [{n}/250] Building CXX object ggml/src/file{n}.cpp.o\n" for n in range(250))


@pytest.mark.parametrize(
    ("log", "told", "hint"),
    [
        ("fatal error: error writing to /tmp/cc.s: No space left on device", "the disk is full", "TMPDIR=/path"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] x", "the disk is full", "TMPDIR=/path"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "not enough memory", "PARALLEL_LEVEL=1"),
        ("cc1plus: out of memory allocating 65536 bytes", "not enough memory", "PARALLEL_LEVEL=1"),
        ("ended by signal 9", "not enough memory", "PARALLEL_LEVEL=1"),
        (
            "host_config.h:1: error: #error -- unsupported GNU version! gcc versions later than 13 are not supported!",
            "does not take this g++",
            "`sudo apt install g++-13`",
        ),
        ("nvcc fatal : Unsupported gpu architecture 'compute_120'", "does not know the card", "BUILD=cpu"),
        ("CMake Error: Could NOT find CUDAToolkit (missing: CUDA_CUDART)", "is not whole", "nvidia-cuda-toolkit`"),
        ("ggml-cuda.cu:3: fatal error: cublas_v2.h: No such file or directory", "is not whole", "nvidia-cuda-toolkit`"),
        ("/usr/bin/ld: cannot find -lcublas: No such file", "is not whole", "BUILD=cpu"),
        ("CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage", "does not work", "`sudo apt install g++`"),
        ("g++: fatal error: cannot execute 'cc1plus': posix_spawnp", "does not work", "`sudo apt install g++`"),
        ("x.c:1:10: fatal error: stdio.h: No such file or directory", "does not work", "`sudo apt install g++`"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE",
            "not the one that was pinned",
            "PIP_",
        ),
        ("SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate", "PIP_CERT="),
        ("Retrying after connection broken by 'NewConnectionError('<x>: Failed", "cannot be reached", "PIP_INDEX_URL"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "cannot be reached", "PIP_INDEX_URL"),
        ("ERROR: No matching distribution found for msgspec<1,>=0.22", "has not what is needed", "no msgspec<1,>=0.22"),
        ("[Errno 13] Permission denied: '/opt/x/lib'", "may not be written", "make /opt/x/lib yours"),
        ("ggml.c:9:1: error: expected ';' before 'int'", "error: expected ';' before 'int'", "the log tells more"),
        ("CMake Error at CMakeLists.txt:3 (message):\n  Something is odd\n", "Something is odd", "the log tells more"),
        ("ERROR: Failed to build wheels", "Failed to build wheels", "the log tells more"),
        ("", "it does not say why", "the log tells more"),
    ],
)
def test_a_log_becomes_one_sentence_with_one_hint(log, told, hint):
    text = explained(f"{NOISE}{log}\n{NOISE}", machine(), step="it stopped", log_name=".venv/x.log")
    sentence, _, what_to_do = text.partition("hint: ")
    assert sentence.startswith("it stopped: ")
    assert told in sentence
    assert hint in what_to_do
    assert "(log: .venv/x.log)" in sentence
    assert text.count("hint:") == 1
    assert "\n" not in text
    assert len(text) < 500


def test_a_build_for_a_card_that_fails_oddly_goes_on_without_the_card():
    text = explained("x.cu(3): error: odd", machine(), step="it stopped", log_name="x.log", cuda=True)
    assert text.endswith("hint: `make serve BUILD=cpu` goes on without the card")


def test_a_line_as_long_as_a_command_is_cut():
    assert len(cause(f"error: {'x' * 5000}")) <= 200
